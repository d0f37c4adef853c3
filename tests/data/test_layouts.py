"""Known data sets as they are downloaded: each `conf/data`, on a stand-in of its layout."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import CATEGORIES, COUNTS, LAYOUTS, coco, imagenet, laion, picture, places

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.data.base import ImageDataset, to_batch
from ldmlab.data.batches import Batches
from ldmlab.data.coco import Coco
from ldmlab.data.listed import Listed
from ldmlab.data.open_images import OpenImages
from ldmlab.data.shards import Shards
from ldmlab.errors import DataError
from train import train


def both(name: str, root: Path, *words: str) -> tuple[ImageDataset, ImageDataset]:
    own = LAYOUTS[name](root)
    cfg = load([f"data={name.removesuffix('_sr')}", f"data.root={root}", "data.resolution=16", *own, *words]).cfg
    return build.dataset(cfg, "train", None), build.dataset(cfg, "val", None)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_known_layout_runs(name, tmp_path):
    train, val = both(name, tmp_path / "data")
    assert (len(train), len(val), train.fields) == COUNTS[name]
    assert val.fields == train.fields and val.class_names == train.class_names
    seen = [
        {sample["image"].tobytes() for sample in data.__getitems__(list(range(len(data))))} for data in (train, val)
    ]
    assert not seen[0] & seen[1] and len(seen[0]) == len(train)
    assert train.fingerprint() != val.fingerprint()
    batch = Batches(train, 4, 4, 0, torch.device("cpu")).step(0)[0]  # the mirror included
    assert batch["image"].shape == (4, 3, 16, 16) and set(train.fields) <= set(batch)


TASKS = {
    "imagenet": ["class_vector"], "imagenet_sr": ["superres"], "lsun": ["none"], "celebahq_25k": ["none"], "celebahq_27k": ["none"],
    "ffhq": ["none"], "places": ["inpaint"], "coco": ["layout_small", "text_small", "semantic"], "open_images": ["layout_small"],
    "laion": ["text_small"],
}  # fmt: skip
TINY = [
    "debug=tiny", "data.resolution=16", "ae=identity", "ldm=unet_study", "ldm.network.width=8", "ldm.network.norm_group_channels=4",
    "runtime.threads=1", "ldm.fit.images=16", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "sampler.steps=2", "eval=none", "until=samples",
    "eval.samples=4", "eval.batch_size=4", "eval.reconstructions=2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_known_layout_is_trained_on_and_sampled(name, tmp_path, capsys):
    """`python src/train.py data=…`, with a conditioning that reads the layout's own fields."""
    own = LAYOUTS[name](tmp_path / "data")
    for task in TASKS[name]:
        base = [
            f"data={name.removesuffix('_sr')}",
            f"data.root={tmp_path / 'data'}",
            f"cond={task}",
            f"store={tmp_path / 'store'}",
        ]
        train(load([*base, *TINY, *own]), "python src/train.py")
    assert len(list((tmp_path / "store").glob("samples/*/done.json"))) == len(TASKS[name])


def test_labels_are_those_of_folders_and_lists(tmp_path):
    train, val = both("imagenet", tmp_path / "i")
    assert (
        train.class_names == ("n01440764", "n01443537", "n02102040")
        and val.labels().tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    train, val = both("places", tmp_path / "p")
    assert train.class_names == ("/a/abbey", "/b/barn", "/b/barn/indoor")
    assert train.labels().tolist() == [0] * 3 + [1] * 3 + [2] * 3 and val.labels().tolist() == [1, 2, 0, 1]


def test_imagenets_flat_val_has_its_classes_from_a_list(tmp_path):
    imagenet(tmp_path)
    for file in sorted((tmp_path / "val").rglob("*.JPEG")):
        file.rename(tmp_path / "val" / file.name)
    (tmp_path / "val.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000007,n02102040 1 2 3 4\nILSVRC2012_val_00000002,n01440764 0 0 1 1\n"
    )
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000003.JPEG 1\n")
    val = Listed(str(tmp_path), 16, "val", "train", "val", val="val.csv", labels="folders")
    assert val.labels().tolist() == [0, 2] and len(val.class_names) == 3
    assert Listed(str(tmp_path), 16, "val", "train", "val", val="val.txt", labels="folders").labels().tolist() == [1]


def test_a_list_of_numbers_counts_the_sorted_paths(tmp_path):
    _, val = both("imagenet_sr", tmp_path)
    every = sorted((tmp_path / "val").rglob("*.JPEG"))
    whole = Listed(str(tmp_path), 16, "val", "train", "val", labels="folders")
    assert len(every) == 12
    for sample, n in zip(val.__getitems__(list(range(4))), (0, 2, 5, 11), strict=True):
        assert np.array_equal(sample["image"], whole[n]["image"]) and sample["label"] == n // 4
    (tmp_path / "bad.p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a pickle that would run a command
    with pytest.raises(DataError, match=r"data.val=bad.p: .*not numbers alone"):
        Listed(str(tmp_path), 16, "val", "train", "val", val="bad.p", labels="folders")


def test_spans_count_names_in_natural_order(tmp_path):
    for n in range(12):
        picture(tmp_path / f"{n}.png", n, (16, 16))
    val = Listed(str(tmp_path), 16, "val", train="0:9", val="9:12")
    pixels = [
        np.asarray(Image.open(tmp_path / f"{n}.png")).tobytes() for n in (10, 11, 9)
    ]  # paths of a split are sorted
    assert [sample["image"].tobytes() for sample in val] == pixels  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"data.train=0:13: the folder has 12 pictures"):
        Listed(str(tmp_path), 16, "train", train="0:13")


def test_lists_that_do_not_fit_are_refused(tmp_path):
    places(tmp_path)
    (tmp_path / "more.txt").write_text("/a/abbey/00000001.jpg 0\n/a/abbey/00000099.jpg 0\n")
    with pytest.raises(DataError, match=r"names 1 pictures that are not there, the first is /a/abbey/00000099.jpg"):
        Listed(str(tmp_path), 16, train_folder="data_256", train="more.txt")
    (tmp_path / "high.txt").write_text("/a/abbey/00000001.jpg 3\n")
    with pytest.raises(DataError, match=r"its class '3' is none of the 3 classes"):
        Listed(
            str(tmp_path),
            16,
            train_folder="data_256",
            train="high.txt",
            labels="list",
            classes="categories_places365.txt",
        )
    with pytest.raises(DataError, match=r"data.train=none.txt: .*cannot be read as text"):
        Listed(str(tmp_path), 16, train_folder="data_256", train="none.txt")
    with pytest.raises(DataError, match=r"data.test_folder=null: this set has no split 'test'"):
        Listed(str(tmp_path), 16, "test", train_folder="data_256")


def test_an_lmdb_is_refused_with_the_command_that_exports_it(tmp_path):
    """As LSUN's zip unpacks."""
    (tmp_path / "church_outdoor_train_lmdb").mkdir()
    (tmp_path / "church_outdoor_train_lmdb" / "data.mdb").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"church_outdoor_train_lmdb is an lmdb \(LSUN\), .*data.py export .*--out_dir .*/images"
    ):
        Listed(str(tmp_path), 16, "train", "images", "images", train="0:3", val="3:4")


def test_an_lmdb_without_the_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "church_outdoor_train_lmdb").mkdir()
    (tmp_path / "church_outdoor_train_lmdb" / "data.mdb").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match=r"church_outdoor_train_lmdb is an lmdb, .*pip install 'ldmlab\[lmdb\]'"):
        Listed(str(tmp_path), 16, "train", "church_outdoor_train_lmdb")


@pytest.fixture
def here(tmp_path) -> Path:
    coco(tmp_path)
    return tmp_path


def test_every_field_of_coco_shows_what_the_picture_shows(here):
    """The rectangle of each picture, found by its colour, is where box and panoptic map say, after crop and resize."""
    data = Coco(str(here), 24, "train", fields=["boxes", "caption", "segmentation"], objects=2)
    assert [field.values for field in data.declared] == [3, None, 4]
    for n, sample in enumerate(data):  # type: ignore[arg-type]
        kind = n % 3
        others_HW = np.delete(sample["image"], kind, axis=2).max(axis=2)
        shown_HW = sample["image"][..., kind].astype(int) - others_HW > 127
        map_HW = sample["segmentation"] == 1 + kind
        assert (shown_HW ^ map_HW).mean() < 0.05 and set(np.unique(sample["segmentation"])) == {0, 1 + kind}
        ys, xs = np.nonzero(map_HW)
        box = sample["boxes"][0]
        assert box[0] == kind and np.allclose(box[1:] * 24, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1)
        assert sample["caption"] == f"0 train thing {n} to the left"
        assert (sample["boxes"][1] == -1).all()  # the small one is cut off, or there is none
    assert len(Coco(str(here), 24, "train", min_objects=2)) == 3


def test_semantic_maps_keep_their_numbers_and_unlabelled_is_the_last(here):
    data = Coco(str(here), 24, "val", segmentation="stuff/{split}", fields=["segmentation"], classes=19, unlabelled=255)
    assert data.declared[0].values == 20
    assert all(set(np.unique(s["segmentation"])) == {CATEGORIES[n % 3], 19} for n, s in enumerate(data))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"the value 255 occurs, and the field segmentation has 19 classes"):
        Coco(str(here), 24, "val", segmentation="stuff/{split}", fields=["segmentation"])[0]


def test_a_mirror_image_has_mirrored_fields(here):
    data = Coco(str(here), 24, "train", fields=["boxes", "caption", "segmentation"], flip=True)
    drawn = Batches(data, 6, 6, 0, torch.device("cpu")).step(0)[0]
    plain = to_batch(data.__getitems__(list(range(6))))
    kinds = []
    for b in range(6):
        n = next(n for n in range(6) if drawn["caption"][b].split()[3] == str(n))
        mirrored = "right" in drawn["caption"][b]
        kinds.append(mirrored)
        map_HW = plain["segmentation"][n].flip(1) if mirrored else plain["segmentation"][n]
        assert torch.equal(drawn["segmentation"][b], map_HW)
        box, own = drawn["boxes"][b, 0], plain["boxes"][n, 0]
        assert torch.allclose(box[[1, 3]], 1 - own[[3, 1]] if mirrored else own[[1, 3]])
    assert {True, False} == set(kinds)


def test_overfit_makes_val_of_train(here):
    train, val = (Coco(str(here), 24, split, overfit=True) for split in ("train", "val"))
    assert len(train) == len(val) == 6 and all(
        np.array_equal(a["image"], b["image"]) for a, b in zip(train, val, strict=True)
    )  # type: ignore[call-overload]


def test_annotations_that_do_not_fit_are_refused(here):
    (here / "train2017" / "000000000003.png").rename(here / "gone.png")
    with pytest.raises(DataError, match=r"instances_train2017.json names 1 pictures that are not there"):
        Coco(str(here), 24)
    (here / "gone.png").rename(here / "train2017" / "000000000003.png")
    with pytest.raises(DataError, match=r"data.captions: .*none.json cannot be read"):
        Coco(str(here), 24, captions="none.json", fields=["caption"])
    picture(here / "train2017" / "000000000000.png", 0, (20, 40))
    with pytest.raises(DataError, match=r"its boxes is of another picture: annotated for 32x28, the picture has 20x40"):
        Coco(str(here), 24)[0]
    file = here / "annotations" / "captions_train2017.json"
    file.write_text(json.dumps({"images": json.loads(file.read_text())["images"], "annotations": []}))
    with pytest.raises(DataError, match=r"6 pictures have no caption in .*captions_train2017.json"):
        Coco(str(here), 24, fields=["caption"])


def test_open_images_leave_out_unknown_classes_and_sparse_pictures(tmp_path):
    LAYOUTS["open_images"](tmp_path)
    data = OpenImages(str(tmp_path), 16, "train", min_objects=2)
    assert len(data) == 4 and data.declared[0].values == 2
    boxes_K5 = data[3]["boxes"]
    assert boxes_K5[:2, 0].tolist() == [0, 1] and (boxes_K5[2:] == -1).all()
    w = 24 * 16 / 20  # of the resized picture, whose middle 16 pixels are seen
    assert np.allclose(boxes_K5[0, 1:], [max(0, (0.1 * w - 1) / 16), 0.2, min(1, (0.9 * w - 1) / 16), 0.9], atol=0.07)


def test_laion_shards_have_captions_and_a_split(tmp_path):
    laion(tmp_path / "l")
    val = Shards(str(tmp_path / "l"), 16, "val", val_shards=1)
    assert [sample["caption"] for sample in val] == [f"picture {n}" for n in range(8, 12)]  # type: ignore[attr-defined]
    assert Shards(str(tmp_path / "l"), 16, "val", val_shards=1, captions=False).fields == ()
    laion(tmp_path / "m", captioned=10)
    with pytest.raises(DataError, match=r"00002.tar: 2 of its 4 samples have a caption .*data.captions=false"):
        Shards(str(tmp_path / "m"), 16, "val", val_shards=1)
    with pytest.raises(DataError, match=r"data.val_shards=3 leaves none of the 3 shards"):
        Shards(str(tmp_path / "m"), 16, "val", val_shards=3)


def test_real_coco(shared_data):
    data = Coco(
        str(shared_data / "coco_free"), 64, "train", "images", "instances.json", "captions.json", "semantic",
        ["boxes", "caption", "segmentation"], overfit=True,
    )  # fmt: skip
    assert len(data) == 32 and [field.values for field in data.declared] == [80, None, 91]
    known = sorted(
        c["id"] for c in json.loads((shared_data / "coco_free" / "instances.json").read_text())["categories"]
    )
    agree = []
    for sample in data:  # type: ignore[attr-defined]
        for kind, x0, y0, x1, y1 in sample["boxes"][sample["boxes"][:, 0] >= 0]:
            part_HW = sample["segmentation"][int(y0 * 64) : int(np.ceil(y1 * 64)), int(x0 * 64) : int(np.ceil(x1 * 64))]
            agree.append((part_HW == known[int(kind)]).any())
    assert len(agree) > 200 and np.mean(agree) > 0.9  # objects too small for the map, or covered by others
