import contextlib
import functools
import hashlib
import json
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from ranks import finished, silently, started

import ldmlab.data.prepare as prepare_module
from ldmlab.data.folder import Folder
from ldmlab.data.prepare import prepare, verify
from ldmlab.data.shards import Shards
from ldmlab.errors import ConfigError, DataError


def put(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / "source"
    for n in range(50):
        put(root / "ab"[n % 2] / f"v1.{n:03d}.jpg", n)  # dots in names must not reach the keys
    return root


def contents(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_shards_hold_what_the_folder_gives(source, tmp_path):
    out = tmp_path / "out"
    manifest = prepare(
        source, out, 16, val_fraction=0.2, test_fraction=0.1, images_per_shard=9, format="png", licence="CC0"
    )
    for split in ("train", "val", "test"):
        folder, shards = Folder(str(source), 16, split, 0.2, 0.1), Shards(str(out), 16, split)
        assert len(folder) == len(shards) == manifest.images(split) and shards.class_names == ("a", "b")
        rows = {folder._paths[i]: folder[i] for i in range(len(folder))}
        for i, (path, sha256) in enumerate(manifest.sources[split]):
            assert np.array_equal(shards[i]["image"], rows[path]["image"]) and shards[i]["label"] == rows[path]["label"]
            assert hashlib.sha256((source / path).read_bytes()).hexdigest() == sha256
    stored = json.loads((out / "manifest.json").read_text())
    assert stored["resolution"] == 16 and stored["licence"] == "CC0" and stored["fields"] == ["label"]
    assert json.loads((out / "classes.json").read_text()) == ["a", "b"]
    assert not (out / ".prepare").exists()


def test_the_manifest_describes_the_bytes(source, tmp_path):
    manifest = prepare(source, tmp_path / "out", 16, images_per_shard=8)
    seen = 0
    for split, records in manifest.splits.items():
        for record in records:
            file = tmp_path / "out" / record.name
            assert (
                hashlib.sha256(file.read_bytes()).hexdigest() == record.sha256 and file.stat().st_size == record.bytes
            )
            stream = list(webdataset.WebDataset(str(file), shardshuffle=False))
            assert [int(sample["cls"]) for sample in stream] == record.labels
            assert all("." not in sample["__key__"] and sample["__key__"].startswith(split) for sample in stream)
            content = file.read_bytes()
            for sample, offset, size in zip(stream, record.offsets, record.sizes, strict=True):
                assert content[offset : offset + size] == sample["jpg"]
            with tarfile.open(file) as tar:
                assert {member.mtime for member in tar.getmembers()} == {0}
            seen += record.images
    assert seen == 50
    # classes are mixed within the first shard, as streaming needs
    assert set(manifest.splits["train"][0].labels or []) == {0, 1}


def test_the_same_command_twice_writes_nothing(source, tmp_path):
    out = tmp_path / "out"
    first = prepare(source, out, 16, images_per_shard=10)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.*")}
    assert prepare(source, out, 16, images_per_shard=10) == first
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.*")} == stamps
    assert not (out / ".prepare").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 8}, "different resolution"),
        ({"quality": 80}, "different encoding"),
        ({"val_fraction": 0.5}, "different split_rule"),
        ({"images_per_shard": 7}, "different images_per_shard"),
    ],
)
def test_another_data_set_is_never_overwritten(source, tmp_path, change, message):
    options = {"resolution": 16, "images_per_shard": 10}
    prepare(source, tmp_path / "out", **options)
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        prepare(source, tmp_path / "out", **{**options, **change})
    after = contents(tmp_path / "out")
    assert {name: sha for name, sha in after.items() if not name.startswith(".prepare")} == before


def test_foreign_folders_are_refused(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"out=.*mine is not empty"):
        prepare(source, tmp_path / "mine", 16)
    with pytest.raises(DataError, match=r"source is not empty"):
        prepare(source, source, 16)
    with pytest.raises(DataError, match=r"is a file"):
        prepare(source, tmp_path / "mine" / "thesis.txt", 16)
    with pytest.raises(ConfigError, match=r"prepare.quality=0"):
        prepare(source, tmp_path / "new", 16, quality=0)


def test_a_truncated_source_stops_and_is_named_or_is_left_out(source, tmp_path):
    bad = source / "a" / "v1.004.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(DataError, match=r"1 of 50 .*a/v1\.004\.jpg.*max_unreadable=1"):
        prepare(source, tmp_path / "out", 16)
    manifest = prepare(source, tmp_path / "out", 16, max_unreadable=1)
    assert list(manifest.unreadable) == ["a/v1.004.jpg"]
    assert sum(manifest.images(split) for split in manifest.splits) == 49
    verify(tmp_path / "out", say=lambda line: None)


def test_equal_pictures_in_two_splits_are_recorded(tmp_path, caplog):
    for n in range(6):
        put(tmp_path / "source" / "train" / f"{n}.png", n)
    put(tmp_path / "source" / "val" / "x.png", 3)
    put(tmp_path / "source" / "val" / "y.png", 77)
    manifest = prepare(tmp_path / "source", tmp_path / "out", 16)
    assert manifest.in_two_splits == [["train/3.png", "val/x.png"]] and "train/3.png" in caplog.text
    assert manifest.fields == [] and manifest.class_names == []


WORDS = {"val_fraction": 0.2, "images_per_shard": 4}


def progress_of(out: Path) -> int:
    """Grows with every file that is begun or finished."""
    total = 0
    for path in out.rglob("*") if out.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # renamed or removed while we look
            total += path.stat().st_size + 1 if path.is_file() else 0
    return total


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_no_byte(source, tmp_path):
    prepare(source, tmp_path / "whole", 24, **WORDS)
    whole = contents(tmp_path / "whole")
    work = functools.partial(prepare, source, tmp_path / "out", 24, **WORDS)
    out, rng, kills = tmp_path / "out", random.Random(0), 0
    written: dict[Path, tuple[int, int]] = {}
    for _ in range(60):
        (run,) = started(1, silently, work)
        start = progress_of(out)
        goal = start + rng.choice([1, 2_000, 20_000, 60_000])
        while run.is_alive() and progress_of(out) < goal:
            time.sleep(0.0005)
        run.kill()
        if finished([run]) == [0]:
            break
        kills += 1
        now = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.tar") if noted(out, p)}
        assert all(now.get(p, stat) == stat for p, stat in written.items()), "a finished shard was written again"
        written |= now
    else:
        assert finished(started(1, silently, work)) == [0]
    assert kills >= 3
    assert contents(out) == whole


def noted(out: Path, tar: Path) -> bool:
    return (out / ".prepare" / f"{tar.stem}.json").exists()


def test_an_interruption_in_every_shard_changes_no_byte(source, tmp_path, monkeypatch):
    """The fast relative of the test above: each start gets one shard further, then stops between the tar and its note."""
    prepare(source, tmp_path / "whole", 16, images_per_shard=10)
    count = len(list((tmp_path / "whole").glob("*.tar")))
    original, written = prepare_module._ShardMaker._write, []

    def second_fails(self, file, *rest):
        original(self, file, *rest)
        written.append(file.name)
        if written[-2:-1] != ["start"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module._ShardMaker, "_write", second_fails)
    for _ in range(count - 1):
        written.append("start")
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", 16, images_per_shard=10)
    written.append("start")
    prepare(source, tmp_path / "out", 16, images_per_shard=10)
    assert written.count("start") == count and len(written) == count + 2 * (count - 1) + 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def _raise(error):
    def stop(*_):
        raise error

    return stop


def test_options_may_not_change_under_way(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_place_json", _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", 16)
    with pytest.raises(DataError, match=r"unfinished data set made with other options"):
        prepare(source, tmp_path / "out", 24)
    with pytest.raises(DataError, match=r"unfinished data set: repeat the command"):
        verify(tmp_path / "out")
    prepare(source, tmp_path / "out", 16)
    verify(tmp_path / "out", say=lambda line: None)


def test_two_commands_at_once_are_refused(source, tmp_path):
    from filelock import FileLock

    (tmp_path / "out" / ".prepare").mkdir(parents=True)
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(DataError, match=r"being prepared by another process"):
        prepare(source, tmp_path / "out", 16)


def test_verify_reports_every_shard_and_names_the_bad_ones(source, tmp_path):
    out = tmp_path / "out"
    prepare(source, out, 16, images_per_shard=10)
    lines: list[str] = []
    verify(out, say=lines.append)
    assert len(lines) == len(list(out.glob("*.tar"))) and all(line.endswith("ok") for line in lines)
    (out / "train-00001.tar").unlink()
    altered = bytearray((out / "train-00002.tar").read_bytes())
    altered[3000] ^= 1
    (out / "train-00002.tar").write_bytes(altered)
    (out / "train-00003.tar").write_bytes((out / "train-00003.tar").read_bytes()[:-1024])
    (out / "more.tar").write_bytes(b"")
    (out / "classes.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        verify(out, say=lines.append)
    for name in (
        "train-00001.tar: missing",
        "train-00002.tar: altered",
        "train-00003.tar: ",
        "more.tar",
        "classes.json",
    ):
        assert name in str(caught.value)
    assert "train-00000.tar" not in str(caught.value)


def test_reading_names_a_bad_prepared_shard_at_start(source, tmp_path):
    out = tmp_path / "out"
    prepare(source, out, 16, images_per_shard=10)
    whole = (out / "train-00001.tar").read_bytes()
    for damaged, message in [
        (whole[:-1024], r"train-00001\.tar is cut off"),
        (whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:], r"train-00001\.tar was altered"),
    ]:
        (out / "train-00001.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            Shards(str(out), 16, cache=tmp_path / "cache")
    (out / "train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"train-00001\.tar is missing"):
        Shards(str(out), 16)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is not a usable manifest"):
        Shards(str(out), 16)


def test_repacking_real_photographs(shared_data, tmp_path):
    prepare(
        shared_data / "photos", tmp_path / "out", 64, val_fraction=0.3, images_per_shard=4, format="webp", quality=90
    )
    verify(tmp_path / "out", say=lambda line: None)
    folder, shards = (
        kind(str(root), 64, "train", **options)
        for kind, root, options in (
            (Folder, shared_data / "photos", {"val_fraction": 0.3}),
            (Shards, tmp_path / "out", {}),
        )
    )
    assert len(folder) == len(shards)
