"""LSUN as it is downloaded: folders with data.mdb, made here by lmdb itself."""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins import picture
from whole_commands import run_here

from ldmlab.data.batches import Batches
from ldmlab.data.listed import Listed
from ldmlab.data.shards import Shards
from ldmlab.errors import DataError

lmdb = pytest.importorskip("lmdb", reason="reads LSUN as it is downloaded; pip install -e .[lmdb]")

KEYS = [f"{n * 7919 % 97:040x}" for n in range(12)]  # not in the order in which they are put
TRAIN, VAL = "church_outdoor_train_lmdb", "church_outdoor_val_lmdb"


def database(folder: Path, content: dict[str, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for key, value in content.items():
            writing.put(key.encode(), value)
    (folder / "lock.mdb").unlink()
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve pictures in the training database, four in the other, and the training ones exported beside them."""
    files = {key: picture(tmp_path / "lsun" / "images" / f"{key}.webp", n, (40, 36)) for n, key in enumerate(KEYS)}
    database(tmp_path / "lsun" / TRAIN, {key: file.read_bytes() for key, file in files.items()})
    held = {f"{n:040x}": picture(tmp_path / "held" / f"{n}.webp", 50 + n, (40, 36)).read_bytes() for n in range(4)}
    database(tmp_path / "lsun" / VAL, held)
    return tmp_path / "lsun"


def lsun(root: Path, split: str = "train", **options: object) -> Listed:
    return Listed(str(root), 16, split, **{"train_folder": TRAIN, "val_folder": VAL, **options})  # type: ignore[arg-type]


def test_an_lmdb_gives_what_its_exported_pictures_give_and_stays_as_it_is(root, tmp_path):
    before = {file: file.stat() for file in (root / TRAIN).iterdir()}
    for folder in (TRAIN, VAL):
        (root / folder).chmod(stat.S_IRUSR | stat.S_IXUSR)
    ours, theirs = lsun(root, cache=tmp_path / "cache"), lsun(root, train_folder="images")
    assert [path.split("/")[1] for path in ours._paths] == sorted(KEYS) and len(lsun(root, "val")) == 4
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(ours, theirs, strict=True))  # type: ignore[call-overload]
    assert ours._sha256 == theirs._sha256 and ours.fingerprint() != theirs.fingerprint()
    assert ours.fingerprint() == lsun(root, cache=tmp_path / "cache").fingerprint()  # from memory
    assert {file: file.stat().st_mtime_ns for file in (root / TRAIN).iterdir()} == {
        f: s.st_mtime_ns for f, s in before.items()
    }
    alone = Listed(str(root / TRAIN), 16, train="0:9", val="9:12")  # the root itself
    assert alone._paths == sorted(KEYS)[:9]


def test_lists_divide_an_lmdb_by_key_with_and_without_suffix(root):
    (root / "train.txt").write_text("".join(f"{key}.webp\n" for key in KEYS[:7]))
    (root / "val.txt").write_text("".join(f"{key}\n" for key in KEYS[7:]))
    one = {"val_folder": TRAIN, "train": "train.txt", "val": "val.txt"}
    train, val = lsun(root, **one), lsun(root, "val", **one)
    assert train._paths == sorted(f"{TRAIN}/{key}" for key in KEYS[:7]) and len(val) == 5
    assert not val.in_two_splits(train)
    mixed = lsun(root, "train", train="train.txt", val_folder="images", val="val.txt")  # a database beside a folder
    assert mixed.fingerprint() != train.fingerprint()
    with pytest.raises(DataError, match=r"names 1 pictures that are not there, the first is .*f.webp"):
        (root / "more.txt").write_text("f" * 40 + ".webp\n")
        lsun(root, train="more.txt")


def test_worker_processes_open_it_for_themselves(root):
    """A forked worker must not use what its parent has open; the batches are those without workers."""
    data = lsun(root)
    alone, forked = (Batches(data, 4, 4, 0, torch.device("cpu"), workers=n) for n in (0, 2))
    for at in (0, 4, 8, 12):
        assert torch.equal(alone.step(at)[0]["image"], forked.step(at)[0]["image"])
    held = data[0]["image"]
    if (child := os.fork()) == 0:
        os._exit(0 if np.array_equal(data[0]["image"], held) else 1)
    assert os.waitpid(child, 0)[1] == 0 and np.array_equal(data[0]["image"], held)


def test_a_replaced_database_is_read_anew(root, tmp_path):
    first = lsun(root, cache=tmp_path / "cache")
    shutil.rmtree(root / TRAIN)
    database(root / TRAIN, {KEYS[0]: (root / "images" / f"{KEYS[1]}.webp").read_bytes()})
    second = lsun(root, cache=tmp_path / "cache")
    assert len(second) == 1 and second._sha256[0] == first._sha256[first._paths.index(f"{TRAIN}/{KEYS[1]}")]


def test_a_value_that_is_no_picture_counts_as_unreadable(root):
    good = (root / "images" / f"{KEYS[0]}.webp").read_bytes()
    database(root / "bad_lmdb", {"a": good, "b": b"no picture", "c": good[: len(good) // 2], "d": good})
    with pytest.raises(DataError, match=r"2 of 4 pictures in .*bad_lmdb/b \(not a picture.*data.max_unreadable=2"):
        lsun(root, train_folder="bad_lmdb")
    some = lsun(root, train_folder="bad_lmdb", max_unreadable=2)
    assert some._paths == ["bad_lmdb/a", "bad_lmdb/d"] and len(some.split_record()["unreadable"]) == 2  # type: ignore[arg-type]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "change,problem",
    [
        (lambda content: b"", "cannot be read as an lmdb: .*Unpack"),
        (lambda content: b"hello" * 5000, "cannot be read as an lmdb: .*not an LMDB file"),
        (half, r"is cut short: \d+ of \d+ bytes"),
        (lambda content: content[:8192] + bytes(len(content) - 8192), "is damaged: .*Unpack"),
    ],
    ids=["no bytes", "text", "cut short", "zeros"],
)
def test_a_damaged_database_is_one_error(root, change, problem):
    file = root / TRAIN / "data.mdb"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=f"{TRAIN}/data.mdb {problem}"):
        lsun(root)


def test_an_empty_database_is_refused(root):
    database(root / "empty_lmdb", {})
    with pytest.raises(DataError, match=r"empty_lmdb/data.mdb is an lmdb without any entry"):
        lsun(root, train_folder="empty_lmdb")


WORDS = [
    f"data.train_folder={TRAIN}",
    f"data.val_folder={VAL}",
    "data.train=null",
    "data.val=null",
    "data.resolution=16",
]


def test_prepare_packs_an_lmdb(root, tmp_path):
    words = ["data=lsun", f"data.root={root}", *WORDS, f"out={tmp_path / 'shards'}", "prepare.format=png"]
    ran = run_here("prepare", words)
    assert ran.returncode == 0, ran.stderr
    for split in ("train", "val"):
        packed = Shards(str(tmp_path / "shards"), 16, split)  # type: ignore[arg-type]
        images = sorted(sample["image"].tobytes() for sample in packed)  # type: ignore[attr-defined]
        assert images == sorted(sample["image"].tobytes() for sample in lsun(root, split))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_model_is_trained_on_an_lmdb(root, tmp_path):
    small = [
        "debug=tiny", "ae=identity", "ldm=unet_study", "ldm.network.width=8", "ldm.network.norm_group_channels=4", "runtime.threads=1",
        "ldm.fit.images=16", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "sampler.steps=2", "eval=none", "until=samples", "eval.samples=4",
        "eval.batch_size=4", "eval.reconstructions=2", "runtime.workers=1",
    ]  # fmt: skip
    ran = run_here(
        "train", ["data=lsun", "cond=none", f"data.root={root}", *WORDS, f"store={tmp_path / 'store'}", *small]
    )
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "store").glob("samples/*/done.json"))) == 1
