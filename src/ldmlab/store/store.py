"""The store: every result has an address made from what it is a function of, and nothing finished is ever overwritten.

    id = sha256(canonical JSON of the stage's completed options + upstream ids + the stage's version number)

A folder `store/<stage>/<name>-<id>/` is finished when it holds `done.json`, written last, with the sha256 of each result file.
Every file is written beside its place and renamed into it, so a kill at any moment leaves the old file or the new one.
"""

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldmlab.errors import DataError

ID_LENGTH = 12


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def make_id(stage: str, version: int, options: dict[str, Any], upstream: dict[str, str]) -> str:
    """The first 12 hex digits of the sha256 described above."""
    text = canonical({"stage": stage, "version": version, "options": options, "upstream": upstream})
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to; renamed onto `path` when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with atomic(path) as beside:
        beside.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises DataError when the file is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Run the same command again; it builds what is not there.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged ({error}). Remove its folder and run the same command again.") from None


@dataclass(frozen=True)
class Address:
    """One stage of one run: what it is a function of, hence its id and its folder."""

    stage: str
    name: str
    version: int
    options: dict[str, Any]
    upstream: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return make_id(self.stage, self.version, self.options, self.upstream)


def _passing(path: Path) -> bool:
    """What is in a stage's folder and no result: locks, checkpoints, the mirror's own files."""
    return path.name.startswith(".") or path.parts[0] in ("checkpoints", "wandb")


class Store:
    """Folders by address, their locks and their seals."""

    def __init__(self, root: Path):
        self.root = root.resolve()

    def folder(self, address: Address) -> Path:
        return self.root / address.stage / f"{address.name}-{address.id}"

    def done(self, address: Address) -> dict[str, Any] | None:
        """The seal of a finished stage, or None. Raises DataError when a sealed file is missing or has another size."""
        folder = self.folder(address)
        if not (folder / "done.json").exists():
            return None
        seal: dict[str, Any] = read_json(folder / "done.json")
        for name, entry in seal["files"].items():
            path = folder / name
            if not path.exists() or path.stat().st_size != entry["bytes"]:
                found = (
                    f"has {path.stat().st_size} bytes instead of {entry['bytes']}" if path.exists() else "is missing"
                )
                raise DataError(
                    f"{path} {found}, but {folder / 'done.json'} says that this {address.stage} is finished. "
                    f"Restore the file, or remove {folder} and run the same command to build it again."
                )
        return seal

    def check(self, address: Address, name: str) -> Path:
        """A sealed result file whose content is compared with its sha256. Raises DataError when it differs."""
        folder = self.folder(address)
        seal = self.done(address)
        if seal is None:
            raise DataError(f"{folder} is not finished. Run the same command again; it resumes.")
        if sha256_file(folder / name) != seal["files"][name]["sha256"]:
            raise DataError(
                f"{folder / name} was altered: its sha256 is not the one in done.json. "
                f"Restore it, or remove {folder} and run the same command to build it again."
            )
        return folder / name

    def seal(self, address: Address, seconds: float) -> None:
        """Declare the stage finished: every file that stays is hashed into `done.json`."""
        folder = self.folder(address)
        files = {
            str(path.relative_to(folder)): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "done.json" and not _passing(path.relative_to(folder))
        }
        write_json(folder / "done.json", {"stage": address.stage, "id": address.id, "seconds": seconds, "files": files})

    @contextlib.contextmanager
    def building(self, address: Address, say: Any = print) -> Iterator[Path]:
        """The stage's folder, locked against other processes; a second process waits and says for whom."""
        folder = self.folder(address)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = (
                (folder / ".lock.holder").read_text().strip() if (folder / ".lock.holder").exists() else "a process"
            )
            say(f"{address.stage} {address.id} is being built by {holder}; waiting")
            lock.acquire()
        try:
            (folder / ".lock.holder").write_text(
                f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}\n"
            )
            yield folder
        finally:
            (folder / ".lock.holder").unlink(missing_ok=True)
            lock.release()
