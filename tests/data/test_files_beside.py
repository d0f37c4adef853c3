"""Captions, maps and masks beside pictures: read with their pictures, packed into shards and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import coco, picture

from ldmlab.data.base import ImageDataset
from ldmlab.data.coco import Coco, CocoLayout
from ldmlab.data.encoding import Encoding
from ldmlab.data.folder import Folder, FolderLayout
from ldmlab.data.manifest import parse_manifest
from ldmlab.data.prepare import pack, verify
from ldmlab.data.shards import Shards
from ldmlab.data.view import View
from ldmlab.errors import ConfigError, DataError

PNG = Encoding("png", 95)
EVERY = {"captions": "txt", "segmentation": "../labels", "depth": "../depth", "mask": "../masks", "classes": 5}


@pytest.fixture
def root(tmp_path) -> Path:
    """Pictures of two classes; the red of each pixel is 40 times its class, green its depth, and blue is 255 in the mask."""
    for n in range(8):
        folder, name = ("ant", "bee")[n % 2], f"{n}.png"
        rng = np.random.default_rng(n)
        kind_HW = np.kron(rng.integers(0, 5, (4, 5)), np.ones((8, 8))).astype(np.uint8)
        depth_HW = np.linspace(0, 65_535, 32 * 40).reshape(32, 40).astype(np.uint16)
        mask_HW = np.kron(rng.integers(0, 2, (4, 5)), np.ones((8, 8))).astype(np.uint8) * 255
        image_HW3 = np.stack([40 * kind_HW, (depth_HW // 257).astype(np.uint8), mask_HW], axis=2)
        for where, pixels in (
            ("pictures/", image_HW3),
            ("labels/", kind_HW),
            ("depth/", depth_HW),
            ("masks/", mask_HW),
        ):
            (tmp_path / f"{where}{folder}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"{where}{folder}" / name)
        (tmp_path / "pictures" / folder / f"{n}.txt").write_text(f"\n number {n} \nmore\n")
    return tmp_path / "pictures"


def assert_equal(one: ImageDataset, other: ImageDataset) -> None:
    """The same samples, in any order, every field of them."""
    assert set(one.fields) == set(other.fields) and len(one) == len(other)
    others = {sample["image"].tobytes(): sample for sample in other.__getitems__(list(range(len(other))))}
    for sample in one.__getitems__(list(range(len(one)))):
        twin = others[sample["image"].tobytes()]
        for name in one.fields:
            value = sample[name]
            if isinstance(value, np.ndarray):
                assert value.dtype == twin[name].dtype and np.array_equal(value, twin[name]), name
            else:
                assert value == twin[name], name


def test_maps_may_lie_below_the_root(root):
    (root.parent / "masks").rename(root / "masks")
    data = Folder(str(root), 16, val_fraction=0.0, mask="masks/")
    assert len(data) == 8 and data.class_names == ("ant", "bee") and data[0]["mask"].max() == 1


@pytest.mark.parametrize("size", [16, 32])
def test_a_folders_fields_are_those_of_its_pictures(root, size):
    data = Folder(str(root), size, val_fraction=0.0, **EVERY)
    assert data.fields == ("label", "caption", "segmentation", "depth", "mask") and len(data) == 8
    for sample in data:  # type: ignore[attr-defined]
        n = int(sample["caption"].removeprefix("number "))
        assert sample["label"] == n % 2
        inner = np.s_[2:-2:2, 2:-2:2]  # where the filters of the picture see one class alone, at half size
        assert (
            sample["segmentation"].shape == sample["depth"].shape == (size, size)
            and sample["depth"].dtype == np.float32
        )
        assert (np.abs(sample["segmentation"] * 40.0 - sample["image"][..., 0])[inner] < 20).mean() > 0.85
        assert np.abs(sample["depth"] * 255 - sample["image"][..., 1])[inner].mean() < 8
        assert ((sample["mask"] * 255.0 - sample["image"][..., 2])[inner].__abs__() < 128).mean() > 0.85


def test_captions_from_one_json(root):
    table = {"ant/0.png": "a path", "1.png": ["a name", "another"], **{f"{n}.png": f"n{n}" for n in range(2, 8)}}
    (root / "captions.json").write_text(json.dumps(table))
    said = {s["caption"] for s in Folder(str(root), 16, val_fraction=0.0, captions="captions.json")}  # type: ignore[attr-defined]
    assert {"a path", "a name", "n2"} < said and len(said) == 8
    del table["5.png"]
    (root / "captions.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"1 pictures have no caption in .*captions.json: bee/5.png"):
        Folder(str(root), 16, val_fraction=0.0, captions="captions.json")
    (root / "captions.json").write_text("[1]")
    with pytest.raises(DataError, match=r"is no json of captions"):
        Folder(str(root), 16, captions="captions.json")


def test_what_does_not_fit_is_refused(root):
    with pytest.raises(ConfigError, match=r"data.segmentation needs to know .*data.classes"):
        Folder(str(root), 16, segmentation="../labels")
    with pytest.raises(DataError, match=r"data.depth: .*nowhere is no folder"):
        Folder(str(root), 16, depth="nowhere")
    with pytest.raises(DataError, match=r"the value 4 occurs, and the field segmentation has 3 classes"):
        list(Folder(str(root), 16, segmentation="../labels", classes=3))  # type: ignore[call-overload]
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / ".." / "masks" / "ant" / "0.png")
    with pytest.raises(
        DataError, match=r"ant/0.png: its mask is of another picture: a map of 32x32 for a picture of 40x32"
    ):
        list(Folder(str(root), 16, val_fraction=0.0, mask="../masks"))  # type: ignore[call-overload]
    (root / ".." / "depth" / "ant" / "2.png").write_bytes(b"no png")
    with pytest.raises(DataError, match=r"depth/ant/2.png cannot be read"):
        Folder(str(root), 16, depth="../depth", val_fraction=0.0)
    (root / ".." / "depth" / "ant" / "2.png").unlink()
    with pytest.raises(DataError, match=r"1 pictures have no depth in .*: ant/2.png"):
        Folder(str(root), 16, depth="../depth", val_fraction=0.0)


def test_a_changed_caption_or_map_is_another_data_set(root):
    def id_of() -> str:
        return Folder(str(root), 16, val_fraction=0.0, captions="txt", mask="../masks").fingerprint()

    before = id_of()
    assert before == id_of() != Folder(str(root), 16, val_fraction=0.0, captions="txt").fingerprint()
    (root / "bee" / "3.txt").write_text("number 33")
    after = id_of()
    assert after != before
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(root / ".." / "masks" / "bee" / "3.png")
    assert id_of() != after


def test_prepare_carries_every_field_into_shards_and_back(root, tmp_path):
    listing = FolderLayout(str(root), 16, val_fraction=0.3, **EVERY).listing()
    out = tmp_path / "shards"
    manifest = pack(listing, out, 16, PNG, images_per_shard=3)
    assert manifest.fields == ["label", "caption", "segmentation", "depth", "mask"]
    for split in ("train", "val"):
        assert_equal(Folder(str(root), 16, split, 0.3, **EVERY), Shards(str(out), 16, split))
    assert verify(out, say=lambda line: None).plan == manifest.plan
    assert pack(listing, out, 16, PNG, images_per_shard=3) == manifest  # finished
    small = Shards(str(out), 8, "train")[0]  # maps go with the picture at another size too
    assert small["segmentation"].shape == (8, 8) == small["depth"].shape
    (root / "bee" / "3.txt").write_text("number 33")
    with pytest.raises(DataError, match="already holds another finished data set"):
        pack(FolderLayout(str(root), 16, val_fraction=0.3, **EVERY).listing(), out, 16, PNG, images_per_shard=3)


def test_coco_into_shards_and_back(tmp_path):
    coco(tmp_path / "c")
    fields = ["boxes", "caption", "segmentation"]
    pack(CocoLayout(str(tmp_path / "c"), 24, fields=fields).listing(), tmp_path / "out", 24, PNG, images_per_shard=4)  # type: ignore[arg-type]
    for split in ("train", "val"):
        assert_equal(Coco(str(tmp_path / "c"), 24, split, fields=fields), Shards(str(tmp_path / "out"), 24, split))  # type: ignore[arg-type]


def test_a_damaged_field_in_a_shard_is_found(root, tmp_path):
    out = tmp_path / "shards"
    pack(FolderLayout(str(root), 16, val_fraction=0.0, depth="../depth").listing(), out, 16, PNG)
    record = parse_manifest((out / "manifest.json").read_text(), "m").splits["train"][0]
    offset = record.members["depth.npy"][2][0]
    content = bytearray((out / record.name).read_bytes())
    content[offset : offset + 6] = b"nonpy!"
    (out / record.name).write_bytes(content)
    with pytest.raises(DataError, match="altered"):
        verify(out, say=lambda line: None)
    (out / "manifest.json").unlink()
    assert Shards(str(out), 16).fields == ("label",)  # without a manifest nobody knows what depth.npy is


def test_boxes_follow_the_crop():
    view = View(200, 100, 50)  # half size, then 25 pixels off each side
    boxes = np.array([[3, 0.25, 0.0, 0.75, 1.0], [1, 0.0, 0.0, 0.3, 0.5], [2, 0.0, 0.0, 0.2, 1.0]], dtype=np.float32)
    found = view.boxes(boxes, 4)
    assert (
        np.allclose(found[0], [3, 0, 0, 1, 1])
        and np.allclose(found[1], [1, 0, 0, 0.1, 0.5])
        and (found[2:] == -1).all()
    )
    assert np.allclose(view.boxes(boxes, 1), [[3, 0, 0, 1, 1]])


def test_pictures_without_fields_keep_their_shards(tmp_path):
    """Manifests of pictures and labels say nothing of members: their text is what it was."""
    for n in range(4):
        picture(tmp_path / "in" / "ab"[n % 2] / f"{n}.png", n)
    pack(FolderLayout(str(tmp_path / "in"), 16, val_fraction=0.0).listing(), tmp_path / "out", 16, PNG)
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "declared" not in stored and "members" not in stored["splits"]["train"]["shards"][0]
    assert torch.equal(
        torch.from_numpy(Shards(str(tmp_path / "out"), 16).labels()).sort()[0], torch.tensor([0, 0, 1, 1])
    )
