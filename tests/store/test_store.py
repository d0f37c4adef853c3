"""Addresses, seals, locks: what is finished is found, what was touched is named, what was interrupted is not there."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldmlab.errors import DataError
from ldmlab.store.files import atomic, read_json, write_json
from ldmlab.store.store import Address, Store, make_id


def address(**options: object) -> Address:
    return Address("autoencoder", "kl_f4", 1, dict(options), {"data": "abc"})


def test_id_is_a_function_of_content_only() -> None:
    assert make_id("s", 1, {"a": 1, "b": [1, 2]}, {"u": "x"}) == make_id("s", 1, {"b": [1, 2], "a": 1}, {"u": "x"})
    base = make_id("s", 1, {"a": 1}, {"u": "x"})
    others = [make_id("t", 1, {"a": 1}, {"u": "x"}), make_id("s", 2, {"a": 1}, {"u": "x"}),
              make_id("s", 1, {"a": 1.5}, {"u": "x"}), make_id("s", 1, {"a": 1}, {"u": "y"}),
              make_id("s", 1, {"a": None}, {"u": "x"}), make_id("s", 1, {"a": "1"}, {"u": "x"})]  # fmt: skip
    assert len({base, *others}) == 7


def test_nan_cannot_be_part_of_an_address() -> None:
    with pytest.raises(ValueError):
        make_id("s", 1, {"a": float("nan")}, {})


def test_sealed_stage_is_found_and_a_touched_file_is_named(tmp_path: Path) -> None:
    store, at = Store(tmp_path), address(width=3)
    with store.building(at) as folder:
        (folder / "weights.bin").write_bytes(b"1234")
        assert store.done(at) is None
        store.seal(at, 1.5)
    seal = store.done(at)
    assert seal is not None and seal["seconds"] == 1.5 and list(seal["files"]) == ["weights.bin"]
    assert store.done(address(width=4)) is None
    assert store.check(at, "weights.bin").read_bytes() == b"1234"
    (folder / "weights.bin").write_bytes(b"1235")  # same size: only the content check sees it
    with pytest.raises(DataError, match=r"weights\.bin was altered"):
        store.check(at, "weights.bin")
    (folder / "weights.bin").write_bytes(b"12")
    with pytest.raises(DataError, match=r"weights\.bin has 2 bytes instead of 4"):
        store.done(at)
    (folder / "weights.bin").unlink()
    with pytest.raises(DataError, match=r"weights\.bin is missing"):
        store.done(at)


def test_atomic_leaves_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(RuntimeError), atomic(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"y\.json is missing"):
        read_json(tmp_path / "y.json")


def _hold(root: Path, ready: "multiprocessing.synchronize.Event", seconds: float) -> None:
    with Store(root).building(address()):
        ready.set()
        time.sleep(seconds)


def test_second_process_waits_and_says_for_whom(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, 1.0))
    holder.start()
    assert ready.wait(20)
    said: list[str] = []
    began = time.monotonic()
    with Store(tmp_path).building(address(), said.append):
        waited = time.monotonic() - began
    holder.join()
    assert waited > 0.3
    assert len(said) == 1 and f"process {holder.pid}" in said[0] and "waiting" in said[0]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """kill -9 at random moments while a file is rewritten over and over."""
    code = (
        "import sys, itertools; from pathlib import Path; from ldmlab.store.files import write_json\n"
        "for i in itertools.count(): write_json(Path(sys.argv[1]), {'i': i, 'fill': 'x' * 20000})"
    )
    path = tmp_path / "a.json"
    for delay in (0.35, 0.41, 0.47):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": "src"})
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay - 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = json.loads(path.read_text())
        assert len(found["fill"]) == 20000
