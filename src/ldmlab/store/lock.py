"""A lock that needs nothing of the file system but that a file is created once: many clusters' file systems have no working flock.

The lock is a file that names its holder: host, process, boot, time. A thread of the holder counts in it every `BEAT_SECONDS`.
A lock is left by a dead holder when

- the holder ran in this kernel and process namespace, and its process is gone, or another one has its number; or
- it ran elsewhere (another host, another boot, another container), and the count has stood still for `STALE_SECONDS` while somebody
  here waited. The waiting is measured by the waiter's own clock, so clocks of hosts need not agree.

Then one of those that wait removes the file, and the next one takes the lock. A holder that was taken for dead (stopped, cut off)
finds another file in its place: `lost`.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEAT_SECONDS = 15.0
STALE_SECONDS = 120.0  # longer than file systems of clusters keep what they know of a file (NFS: 60 s at most)


class Lock:
    """A lock at `path`. Only what waits for it or holds it writes there."""

    def __init__(self, path: Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS):
        self.path, self.beat, self.stale = path, beat, stale
        self._file: int | None = None
        self._ended = threading.Event()
        self._seen: str | None = None
        self._since = 0.0  # when the holder's file began to say what was last seen
        self._clearing: Lock | None = None  # held while a dead holder's file is removed

    def take(self) -> bool:
        """Take it if it is free, or its holder is dead; whether it is ours now. Raises OSError where no file can be made."""
        if (dead := self._dead()) is not None:
            self._clear(dead)
        text = f"{json.dumps(_me())}\n".encode()  # before the file, which says nothing until it is written
        try:
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        os.write(self._file, text)
        self._ended.clear()
        self._thread = threading.Thread(
            target=self._count, args=(self._file, os.lseek(self._file, 0, os.SEEK_CUR)), daemon=True
        )
        self._thread.start()
        return True

    def wait(self) -> None:
        """Return when it is ours."""
        pause = 0.05
        while not self.take():
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)

    def release(self) -> None:
        """Free it, if it is still ours."""
        if self._file is None:
            return
        self._ended.set()
        self._thread.join()  # before the file's number may be another file's
        if not self.lost:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    @property
    def lost(self) -> bool:
        """Whether somebody who took this holder for dead has the lock now."""
        if self._file is None:
            return False
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def _count(self, file: int, at: int) -> None:
        count = 0
        while not self._ended.wait(self.beat):
            count += 1
            with contextlib.suppress(OSError):  # a full disk
                os.pwrite(file, f"{count:012d}\n".encode(), at)
                os.fsync(file)

    def _dead(self) -> str | None:
        """What a dead holder wrote; None when nobody holds the lock, or it may be alive."""
        text = _read(self.path)
        if text is None:
            return None
        if text != self._seen:
            self._seen, self._since = text, time.monotonic()
        here = gone(text)
        dead = time.monotonic() - self._since >= self.stale if here is None else here
        return text if dead else None

    def _clear(self, dead: str) -> None:
        """Away with a dead holder's file. One of those that wait does it, under a lock of its own, and looks again first: by then
        another may have cleared the file and taken the lock.
        """
        self._clearing = self._clearing or Lock(
            self.path.with_name(f"{self.path.name}.clearing"), self.beat, self.stale
        )
        if not self._clearing.take():
            return
        try:
            if _read(self.path) == dead:
                self.path.unlink(missing_ok=True)
        finally:
            self._clearing.release()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Lock]:
    """The lock at `path`, held inside the block; waits for it."""
    lock = Lock(path)
    lock.wait()
    try:
        yield lock
    finally:
        lock.release()


def holder(path: Path) -> str | None:
    """Who holds the lock, in words; None when nobody does, or the holder is known to be dead. Writes nothing."""
    text = _read(path)
    if text is None or gone(text):
        return None
    said = _parsed(text)
    return f"process {said['pid']} on {said['host']} since {said['since']}" if said else "a process"


def gone(text: str) -> bool | None:
    """Whether the process that wrote a lock's text is gone; None where it cannot be told from here."""
    said, here = _parsed(text), _me()
    if said is None or any(said.get(key) != here[key] for key in ("host", "boot", "namespace")):
        return None
    started = _started(said["pid"])
    return started is None or (said["started"] not in ("", started))


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(), "pid": pid, "started": _started(pid) or "", "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"), "since": time.ctime(), "token": uuid.uuid4().hex,
    }  # fmt: skip


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot ("" where the system does not say); None when there is none, or a dead one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return ""
    return None if fields[0] in "ZX" else fields[19]


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text.partition("\n")[0])
    except ValueError:  # caught between its creation and its first line
        return None
    return found if isinstance(found, dict) and {"host", "pid", "started", "since"} <= set(found) else None
