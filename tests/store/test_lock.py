"""A lock that asks of a file system only that a file is created once: who holds it, when a holder is dead, what a false death does."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldmlab.errors import DataError
from ldmlab.store import lock as locks
from ldmlab.store.lock import Lock, gone, holder, locked
from ldmlab.store.store import LOCK, Address, Store

HOLD = (
    "import sys, time, pathlib, ldmlab.store.lock as l\n"
    "assert l.Lock(pathlib.Path(sys.argv[1])).take(); print(1, flush=True); time.sleep(60)"
)


def held_by_another(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    return process


def of(path: Path, **said: object) -> None:
    """The lock as somebody else wrote it."""
    path.write_text(json.dumps(locks._me() | said) + "\n000000000007\n")


def test_it_names_its_holder_and_a_second_one_waits(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = Lock(path), Lock(path)
    assert first.take() and not second.take()
    said = json.loads(path.read_text().partition("\n")[0])
    assert said["pid"] == os.getpid() and said["host"] and said["boot"] and said["since"]
    assert holder(path) == f"process {os.getpid()} on {said['host']} since {said['since']}"
    threading.Timer(0.3, first.release).start()
    began = time.monotonic()
    second.wait()
    assert time.monotonic() - began > 0.2
    second.release()
    assert not path.exists() and holder(path) is None


def test_eight_processes_never_hold_it_at_once(tmp_path: Path) -> None:
    """Each adds 1 to a number ten times, without any other protection."""
    code = (
        "import sys, pathlib; from ldmlab.store.lock import locked\n"
        "n = pathlib.Path(sys.argv[1])\n"
        "for _ in range(10):\n"
        "    with locked(n.with_name('lock')): n.write_text(str(int(n.read_text()) + 1))"
    )
    number = tmp_path / "number"
    number.write_text("0")
    every = [subprocess.Popen([sys.executable, "-c", code, number]) for _ in range(8)]
    assert [process.wait() for process in every] == [0] * 8 and number.read_text() == "80"


def test_a_killed_holder_on_this_machine_is_known_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = held_by_another(path)
    assert (
        not Lock(path).take()
        and holder(path) == f"process {process.pid} on " + (holder(path) or "").partition(" on ")[2]
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert holder(path) is None and Lock(path).take()


def test_another_process_with_the_dead_one_s_number_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    of(path, started="12")  # this very process, if numbers alone counted
    assert gone(path.read_text()) is True and Lock(path).take()


@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"boot": "another"}, {"namespace": "pid:[1]"}])
def test_a_holder_elsewhere_is_dead_when_its_count_stands_still(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    """Another host, a reboot, another container: its process cannot be asked for; its own time of 1999 says nothing either."""
    path = tmp_path / "lock"
    of(path, pid=1, since="Fri Dec 31 23:59:59 1999", **elsewhere)
    lock = Lock(path, stale=0.5)
    assert gone(path.read_text()) is None and "since Fri Dec 31" in (holder(path) or "")
    began = time.monotonic()
    lock.wait()
    assert 0.5 <= time.monotonic() - began < 5
    assert json.loads(path.read_text().partition("\n")[0])["pid"] == os.getpid()


def test_a_holder_elsewhere_that_counts_on_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    me = locks._me()
    with monkeypatch.context() as patch:  # the holder is on another host, and its clock is an hour ahead
        patch.setattr(locks, "_me", lambda: me | {"host": "node7", "since": time.ctime(time.time() + 3600)})
        far = Lock(path, beat=0.05)
        assert far.take()
    near = Lock(path, stale=0.3)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert not near.take()
        time.sleep(0.02)
    far.release()
    assert near.take()


def test_a_file_in_the_place_of_the_folder_is_no_lock(tmp_path: Path) -> None:
    store, at = Store(tmp_path), Address("denoiser", "unet", 1, {}, {})
    (tmp_path / "denoiser").touch()
    assert not store.busy(at)
    with pytest.raises(DataError, match="a file stands where a folder is needed"), store.building(at):
        pass


def test_a_file_caught_between_its_creation_and_its_first_line_is_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert holder(path) == "a process" and not Lock(path).take()
    lock = Lock(path, stale=0.1)
    lock.wait()
    assert not lock.lost


def test_of_many_that_wait_for_a_dead_one_each_gets_it_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    of(path, host="node7")
    inside, most = [0], [0]

    def work() -> None:
        lock = Lock(
            path, stale=2.0
        )  # longer than a thread waits on a busy machine between making its file and the first line
        lock.wait()
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        assert not lock.lost
        lock.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and [p.name for p in tmp_path.iterdir()] == []


def test_who_was_taken_for_dead_learns_it_before_anything_is_sealed(tmp_path: Path) -> None:
    store, at = Store(tmp_path), Address("denoiser", "unet", 1, {}, {})
    with (
        pytest.raises(
            DataError, match=r"stood still for more than 120 s, and process \d+ on .* builds the denoiser now"
        ),
        store.building(at) as folder,
    ):
        assert store.busy(at)
        (folder / LOCK).unlink()
        with locked(folder / LOCK):
            pass
        of(folder / LOCK, host="node7")
    assert (folder / LOCK).exists()  # the other one's lock is left alone


def test_a_file_system_without_flock_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(fcntl, "lockf", none)
    store, at = Store(tmp_path), Address("denoiser", "unet", 1, {}, {})
    with store.building(at) as folder:
        (folder / "weights.bin").write_bytes(b"1")
        store.seal(at, 1.0)
    assert store.done(at) is not None and not store.busy(at)
