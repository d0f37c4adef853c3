import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldmlab.data import files
from ldmlab.data.base import ImageDataset, to_batch
from ldmlab.data.folder import Folder
from ldmlab.data.listing import split_of
from ldmlab.errors import ConfigError, DataError


def put(file: Path, number: int = 0, size: tuple[int, int] = (20, 16)) -> Path:
    """A picture whose content depends on `number` alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def classes(tmp_path) -> Path:
    root = tmp_path / "pictures"
    for n in range(60):
        put(root / ("cat", "ant", "bee")[n % 3] / f"{n:03d}.png", n)
    return root


def test_classes_are_sorted_folder_names_and_splits_part_the_set(classes):
    splits = {split: Folder(str(classes), 16, split, 0.2, 0.2) for split in ("train", "val", "test")}
    assert splits["train"].class_names == ("ant", "bee", "cat") and splits["val"].fields == ("label",)
    images = [{sample["image"].tobytes() for sample in folder} for folder in map(list, splits.values())]
    assert len(set().union(*images)) == sum(len(folder) for folder in splits.values()) == 60
    for folder in splits.values():
        assert isinstance(folder, ImageDataset) and len(folder) > 3
        assert [sample["label"] for sample in folder] == folder.labels().tolist()  # type: ignore[attr-defined]
        assert folder[0]["image"].shape == (16, 16, 3) and folder[0]["image"].dtype == np.uint8


def test_the_label_belongs_to_the_picture(classes):
    folder = Folder(str(classes), 16, "train")
    for n in range(0, 60, 7):
        name = ("cat", "ant", "bee")[n % 3]
        pixels = np.asarray(Image.open(classes / name / f"{n:03d}.png"))[:, 2:18]
        hits = [s["label"] for s in folder.__getitems__(list(range(len(folder)))) if np.array_equal(s["image"], pixels)]
        assert hits in ([folder.class_names.index(name)], [])
        assert bool(hits) == (split_of(f"{name}/{n:03d}.png", 0.1, 0.0) == "train")


def test_adding_pictures_moves_no_other(classes):
    before = {split: Folder(str(classes), 16, split, 0.3)._paths for split in ("train", "val")}
    for n in range(60, 90):
        put(classes / "ant" / f"{n:03d}.png", n)
    after = {split: Folder(str(classes), 16, split, 0.3)._paths for split in ("train", "val")}
    assert set(before["train"]) < set(after["train"]) and set(before["val"]) < set(after["val"])


def test_split_fractions_are_met_and_independent():
    paths = [f"c/{n}.jpg" for n in range(20_000)]
    splits = np.array([split_of(path, 0.1, 0.05) for path in paths])
    assert abs((splits == "val").mean() - 0.1) < 0.01 and abs((splits == "test").mean() - 0.05) < 0.01
    without_test = np.array([split_of(path, 0.1, 0.0) for path in paths])
    assert ((splits == "val") == (without_test == "val")).all()


def test_split_folders_are_used_as_they_are(tmp_path):
    for n in range(12):
        put(tmp_path / "train" / "ab"[n % 2] / f"{n}.png", n)
    for n in range(4):
        put(tmp_path / "val" / "ab"[n % 2] / f"{n}.png", 100 + n)
    train, val = Folder(str(tmp_path), 16, "train"), Folder(str(tmp_path), 16, "val")
    assert (len(train), len(val), val.class_names) == (12, 4, ("a", "b"))
    assert val.split_record()["rule"] == "the folders train/, val/ and test/ of the root"
    with pytest.raises(DataError, match=r"no picture for the split 'test'.*test/"):
        Folder(str(tmp_path), 16, "test")
    put(tmp_path / "val" / "c" / "x.png")
    with pytest.raises(DataError, match=r"classes c appear in val/"):
        Folder(str(tmp_path), 16, "train")


def test_train_without_val_is_not_divided_in_silence(tmp_path):
    put(tmp_path / "train" / "a.png")
    put(tmp_path / "train" / "b.png")
    with pytest.raises(DataError, match=r"no picture for the split 'val'"):
        Folder(str(tmp_path), 16, "val")
    assert len(Folder(str(tmp_path), 16, "train")) == 2


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "car", "boat"):
        for n in range(3):
            put(tmp_path / name / f"{n}.png", n)
    assert Folder(str(tmp_path), 16, "train", val_fraction=0.0).class_names == ("boat", "car", "train")


def test_split_folders_beside_others_are_ambiguous(tmp_path):
    for name in ("train", "val", "more"):
        put(tmp_path / name / "a.png")
    with pytest.raises(DataError, match=r"train, val and other folders: more"):
        Folder(str(tmp_path), 16)


def test_flat_nested_and_hidden(tmp_path):
    put(tmp_path / "b.JPG")
    put(tmp_path / "a.Png")
    put(tmp_path / "c.webp")
    put(tmp_path / ".hidden.png")
    put(tmp_path / ".cache" / "x.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    flat = Folder(str(tmp_path), 16, val_fraction=0.0)
    assert flat._paths == ["a.Png", "b.JPG", "c.webp"] and flat.fields == () and "label" not in flat[0]
    with pytest.raises(DataError, match=r"has no labels"):
        flat.labels()
    put(tmp_path / "z" / "deep" / "d.jpeg")
    with pytest.raises(DataError, match=r"3 of 4 pictures lie in no class folder.*labels=none"):
        Folder(str(tmp_path), 16, val_fraction=0.0)
    assert len(Folder(str(tmp_path), 16, val_fraction=0.0, labels="none")) == 4


def test_nested_class_folders_and_a_link_back_up(tmp_path):
    put(tmp_path / "b" / "x" / "1.png", 1)
    put(tmp_path / "a" / "y" / "z" / "2.png", 2)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    folder = Folder(str(tmp_path), 16, val_fraction=0.0)
    assert folder._paths == ["a/y/z/2.png", "b/x/1.png"] and folder.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "data.root=.* no such folder"),
        (lambda root: root.mkdir(), "data.root=.* is empty"),
        (lambda root: (root / "sub").mkdir(parents=True), "data.root=.* holds no pictures"),
        (lambda root: put(root / "x.png").rename(root / "x.gif"), "data.root=.* holds no pictures.*webp"),
    ],
)
def test_a_root_without_pictures_is_named(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        Folder(str(tmp_path / "root"), 16)


def test_a_file_as_root_and_wrong_fractions_are_named(tmp_path, classes):
    with pytest.raises(DataError, match=r"is a file"):
        Folder(str(put(tmp_path / "x.png")), 16)
    with pytest.raises(ConfigError, match=r"data.val_fraction=1.5"):
        Folder(str(classes), 16, val_fraction=1.5)
    with pytest.raises(ConfigError, match=r"leave nothing to train on"):
        Folder(str(classes), 16, val_fraction=0.6, test_fraction=0.4)


def test_no_val_picture_is_an_error_with_a_way_out(tmp_path):
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"raise data.val_fraction"):
        Folder(str(tmp_path), 16, "val", val_fraction=1e-6)
    with pytest.raises(DataError, match=r"raise data.test_fraction"):
        Folder(str(tmp_path), 16, "test")


def test_unreadable_pictures_are_named_counted_and_limited(classes, caplog):
    cut, empty = classes / "ant" / "001.png", classes / "bee" / "002.png"
    cut.write_bytes(cut.read_bytes()[:200])
    empty.write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 60 .*ant/001.png.*bee/002.png.*data.max_unreadable=2 \(now 1\)"):
        Folder(str(classes), 16, val_fraction=0.0, max_unreadable=1)
    with caplog.at_level(logging.WARNING):
        folder = Folder(str(classes), 16, val_fraction=0.0, max_unreadable=2)
    assert len(folder) == 58 and len(folder.labels()) == 58
    assert "ant/001.png" in caplog.text and "bee/002.png" in caplog.text
    assert set(folder.split_record()["unreadable"]) == {"ant/001.png", "bee/002.png"}  # type: ignore[call-overload]
    (classes / "cat" / "broken.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"cat/broken.png"):
        Folder(str(classes), 16, val_fraction=0.0, max_unreadable=2)


def test_a_picture_that_vanishes_later_is_named(classes):
    folder = Folder(str(classes), 16, val_fraction=0.0)
    (classes / "ant" / "001.png").unlink()
    with pytest.raises(DataError, match=r"ant/001\.png could be read when"):
        folder[0]


def test_the_survey_is_remembered_and_follows_changes(classes, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = Folder(str(classes), 16, cache=cache)
    read: list[str] = []
    original = files.Survey._read
    monkeypatch.setattr(files.Survey, "_read", lambda self, path: read.append(path) or original(self, path))
    again = Folder(str(classes), 16, cache=cache)
    assert read == [] and again.fingerprint() == first.fingerprint()
    target = first._paths[0]
    put(classes / target, 999)
    os.utime(classes / target, ns=(1, 1))
    assert Folder(str(classes), 16, cache=cache).fingerprint() != first.fingerprint() and read == [target]


def test_the_fingerprint_ignores_where_the_folder_lies(classes, tmp_path):
    first = Folder(str(classes), 16).fingerprint()
    moved = classes.rename(tmp_path / "elsewhere")
    assert Folder(str(moved), 16).fingerprint() == first
    others = [
        Folder(str(moved), 8),
        Folder(str(moved), 16, "val"),
        Folder(str(moved), 16, val_fraction=0.2),
        Folder(str(moved), 16, labels="none"),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 5
    (moved / "ant").rename(moved / "auk")
    assert Folder(str(moved), 16).fingerprint() != first


def test_workers_give_the_same_batches(classes):
    folder = Folder(str(classes), 16)
    batches = [list(DataLoader(folder, batch_size=20, collate_fn=to_batch, num_workers=n)) for n in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["image"], two["image"]) and torch.equal(one["label"], two["label"])


def test_real_photographs(shared_data):
    folder = Folder(str(shared_data / "photos"), 64, val_fraction=0.0)
    assert len(folder) == 12 and folder.fields == ()
    assert all(folder[i]["image"].shape == (64, 64, 3) and folder[i]["image"].std() > 10 for i in range(12))
