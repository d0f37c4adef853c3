import functools
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from ldmlab.data.base import ImageDataset, to_batch
from ldmlab.data.shards import Shards
from ldmlab.data.tarindex import index_tar, split_name
from ldmlab.errors import DataError


def picture(number: int, side: int = 16) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def samples(first: int, count: int) -> list[tuple[str, bytes]]:
    numbers = range(first, first + count)
    return [part for n in numbers for part in ((f"k{n:04d}.png", picture(n)), (f"k{n:04d}.cls", str(n % 3).encode()))]


@pytest.fixture
def root(tmp_path) -> Path:
    for k in range(3):
        write_tar(tmp_path / "set" / f"train-{k:04d}.tar", samples(10 * k, 10))
    (tmp_path / "set" / "classes.json").write_text('["a", "b", "c"]')
    return tmp_path / "set"


def test_real_shards_equal_tarfile_and_webdataset(shared_data, tmp_path):
    folder = shared_data / "flowers5_128"
    dataset = Shards(str(folder), 128, "val", cache=tmp_path)
    assert isinstance(dataset, ImageDataset)
    assert (len(dataset), dataset.fields) == (360, ("label",))
    assert dataset.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    with tarfile.open(folder / "val-0000.tar") as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    keys = [name[:-4] for name in contents if name.endswith(".jpg")]
    for i in (0, 1, 200, 359):
        decoded = np.asarray(Image.open(io.BytesIO(contents[f"{keys[i]}.jpg"])))
        assert np.array_equal(dataset[i]["image"], decoded) and dataset[i]["label"] == int(contents[f"{keys[i]}.cls"])
    stream = (
        webdataset.WebDataset(str(folder / "val-0000.tar"), shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls")
    )
    for n, (image, label) in zip(range(30), stream, strict=False):
        assert np.array_equal(dataset[n]["image"], image) and dataset[n]["label"] == label
    index = [json.loads(line) for line in (folder / "val-index.jsonl").read_text().splitlines()]
    assert [row["label"] for row in index] == dataset.labels().tolist()


def test_several_shards_make_one_set_in_order(root):
    dataset = Shards(str(root), 16)
    assert len(dataset) == 30 and dataset.labels().tolist() == [n % 3 for n in range(30)]
    for n in (29, 0, 10, 9):
        assert np.array_equal(dataset[n]["image"], np.asarray(Image.open(io.BytesIO(picture(n)))))
    assert Shards(str(root), 8)[3]["image"].shape == (8, 8, 3)


def test_keys_split_as_webdataset_does():
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "d/e/b.cls", "a.b.JPG", "x/y.z/k.seg.png"):
        key, extension = base_plus_ext(name)
        assert split_name(name) == (key, extension.lower())


def test_an_empty_cut_anywhere_is_detected(root):
    """Also on the border of a member or a header, where tarfile and webdataset end without a word."""
    file = root / "train-0001.tar"
    content = file.read_bytes()
    with tarfile.open(file) as tar:
        borders = [m.offset for m in tar.getmembers()] + [m.offset_data for m in tar.getmembers()]
    ends = max(borders) + 512  # after the last label
    for length in [*borders, *(b + 100 for b in borders[:4]), ends, ends + 512]:
        file.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"train-0001\.tar"):
            Shards(str(root), 16)
    with tarfile.open(file) as tar:  # the last cut, seen by tarfile: nothing wrong
        assert len(tar.getmembers()) == 20
    file.write_bytes(content)
    assert len(Shards(str(root), 16)) == 30


def test_a_damaged_header_is_detected(root):
    file = root / "train-0001.tar"
    content = bytearray(file.read_bytes())
    with tarfile.open(file) as tar:
        third = tar.getmembers()[4].offset
    content[third : third + 20] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-0001\.tar is damaged after k0011\.cls"):
        Shards(str(root), 16)


def test_an_altered_byte_is_detected_at_the_next_start(root, tmp_path):
    cache = tmp_path / "cache"
    before = Shards(str(root), 16, cache=cache).fingerprint()
    file = root / "train-0002.tar"
    content = file.read_bytes()
    file.write_bytes(content[:3260] + bytes([content[3260] ^ 1]) + content[3261:])
    with pytest.raises(DataError, match=r"train-0002\.tar was altered.*delete .*cache"):
        Shards(str(root), 16, cache=cache)
    assert Shards(str(root), 16).fingerprint() != before
    file.write_bytes(content)  # the old content with a new mtime is the same shard
    assert Shards(str(root), 16, cache=cache).fingerprint() == before


def test_a_missing_shard_is_named(root, tmp_path):
    cache = tmp_path / "cache"
    Shards(str(root), 16, cache=cache)
    gone = (root / "train-0002.tar").rename(tmp_path / "away.tar")
    with pytest.raises(DataError, match=r"train-0002\.tar is missing"):
        Shards(str(root), 16, cache=cache)
    gone.rename(root / "train-0002.tar")
    (root / "train-0001.tar").unlink()
    with pytest.raises(DataError, match=r"train-0001\.tar is missing"):
        Shards(str(root), 16)


def test_the_index_is_remembered(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = Shards(str(root), 16, cache=cache)
    import ldmlab.data.shards as module

    def never(file):
        raise AssertionError(f"{file} was read again")

    monkeypatch.setattr(module, "sha256_file", never)
    monkeypatch.setattr(module, "index_tar", never)
    again = Shards(str(root), 16, cache=cache)
    assert again.fingerprint() == first.fingerprint() and np.array_equal(again[17]["image"], first[17]["image"])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", picture(0)), ("a.cls", b"1"), ("b.png", picture(1))], "1 of 2 samples have a label.*b has none"),
        ([("a.cls", b"1")], "sample a has 0 pictures"),
        ([("a.png", picture(0)), ("a.jpg", picture(0))], "sample a has 2 pictures"),
        ([("a.png", picture(0)), ("a.cls", b"rose")], "a.cls holds b'rose'"),
        ([("a.png", picture(0)), ("b.png", picture(1)), ("a.cls", b"1")], "sample a has 0 pictures|a key comes back"),
        ([("a.1.png", picture(0)), ("a.2.png", picture(1))], "sample a has 0 pictures"),
        ([], "no samples"),
    ],
)
def test_a_shard_of_another_layout_is_named(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        index_tar(write_tar(tmp_path / "train-0000.tar", members))


def test_compressed_and_foreign_files_are_named(root):
    import gzip

    file = root / "train-0000.tar"
    file.write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(DataError, match=r"train-0000\.tar is not a whole uncompressed tar"):
        Shards(str(root), 16)


def test_roots_and_splits_that_do_not_exist_are_named(root, tmp_path):
    with pytest.raises(DataError, match=r"data.root=.*nowhere does not exist"):
        Shards(str(tmp_path / "nowhere"), 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data.root=.*empty is empty"):
        Shards(str(tmp_path / "empty"), 16)
    with pytest.raises(DataError, match=r"no shards val-\*.tar; it has train"):
        Shards(str(root), 16, "val")
    with pytest.raises(DataError, match=r"is remote and needs a folder"):
        Shards("https://example.org/set", 16)


def test_class_names(root):
    (root / "classes.json").write_text('["a", "b"]')
    with pytest.raises(DataError, match=r"label 2 occurs, but there are only 2"):
        Shards(str(root), 16)
    (root / "classes.json").unlink()
    assert Shards(str(root), 16).class_names == ("0", "1", "2")


def test_shards_without_labels(tmp_path):
    write_tar(tmp_path / "train-0.tar", [(f"k{n}.png", picture(n)) for n in range(4)])
    dataset = Shards(str(tmp_path), 16)
    assert dataset.fields == () and set(dataset[1]) == {"image"}
    with pytest.raises(DataError, match=r"no labels"):
        dataset.labels()


def test_a_damaged_picture_is_named_with_its_shard(tmp_path):
    write_tar(tmp_path / "train-0.tar", [("a.png", picture(0)), ("b.png", picture(1)[:100])])
    with pytest.raises(DataError, match=r"train-0\.tar: the picture at byte"):
        Shards(str(tmp_path), 16)[1]


def test_workers_forks_and_pickles_read_the_same(root):
    dataset = Shards(str(root), 16)
    dataset[0]  # the parent has files open when the workers are forked
    batches = [list(DataLoader(dataset, batch_size=7, collate_fn=to_batch, num_workers=n)) for n in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["image"], two["image"]) and torch.equal(one["label"], two["label"])
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[21]["image"], dataset[21]["image"])


def test_more_shards_than_open_files(root, monkeypatch):
    from ldmlab.data.shards import _OpenFiles

    monkeypatch.setattr(_OpenFiles, "LIMIT", 2)
    dataset = Shards(str(root), 16)
    before = len(os.listdir("/proc/self/fd"))
    for n in (0, 10, 20, 0, 20, 10):
        assert np.array_equal(dataset[n]["image"], np.asarray(Image.open(io.BytesIO(picture(n)))))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_the_fingerprint_is_of_contents(root, tmp_path):
    first = Shards(str(root), 16).fingerprint()
    shutil.copytree(root, tmp_path / "copy")
    assert Shards(str(tmp_path / "copy"), 16).fingerprint() == first
    assert Shards(str(root), 8).fingerprint() != first
    write_tar(root / "train-0000.tar", samples(500, 10))
    assert Shards(str(root), 16).fingerprint() != first


@functools.cache
def bomb() -> bytes:
    """110 kB of PNG that claim 900 million pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(30_000 * (1 + 30_000 // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda: b"this is a letter, not a picture" * 9, "not a picture that Pillow knows"),
        (lambda: picture(1)[:100], "cut off|truncated|broken"),
        (lambda: b"", "not a picture that Pillow knows"),
        (bomb, "more than 178,956,970 pixels"),
    ],
    ids=["text", "cut", "empty", "bomb"],
)
def test_the_first_picture_of_every_shard_is_decoded_when_the_set_is_opened(root, tmp_path, content, why, cached):
    cache = tmp_path / "cache" if cached else None
    Shards(str(root), 16)
    write_tar(root / "train-0001.tar", [("k0010.png", content()), ("k0010.cls", b"1"), *samples(11, 9)])
    for _ in range(2):  # a refused shard is not remembered as a good one
        with pytest.raises(DataError, match=rf"train-0001\.tar: the first picture .*({why}).*Make the shard again"):
            Shards(str(root), 16, cache=cache)


def test_a_memory_without_a_decoded_picture_is_not_trusted(root, tmp_path):
    """Files that remember shards, written by a version that decoded nothing."""
    cache = tmp_path / "cache"
    Shards(str(root), 16, cache=cache)
    (memory,) = cache.glob("shards-*.json")
    known = json.loads(memory.read_text())
    write_tar(root / "train-0001.tar", [("k0010.png", b"text"), ("k0010.cls", b"1"), *samples(11, 9)])
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(root / "train-0001.tar", tmp_path / "alone" / "train-0001.tar")
    index, stat = index_tar(alone), (root / "train-0001.tar").stat()
    from ldmlab.store.files import sha256_file

    record = {"name": "train-0001.tar", "bytes": stat.st_size, "sha256": sha256_file(alone), "offsets": index.offsets,
              "sizes": index.sizes, "labels": index.labels}  # fmt: skip
    known["train-0001.tar"] = {"stamp": [stat.st_size, stat.st_mtime_ns], "record": record}
    memory.write_text(json.dumps(known))
    with pytest.raises(DataError, match=r"train-0001\.tar: the first picture"):
        Shards(str(root), 16, cache=cache)


def test_a_class_beyond_classes_json_says_what_to_do(root):
    (root / "classes.json").write_text('["a", "b"]')
    with pytest.raises(DataError, match=r"label 2 occurs.*2 class names.*classes\.json.*remove"):
        Shards(str(root), 16)
