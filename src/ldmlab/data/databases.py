"""Pictures in lmdb databases, as LSUN is downloaded: a folder with data.mdb, where a value is the bytes of a picture file.

A database is only read, and without its lock: nothing is written into its folder, which may be read-only.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmlab.data.files import Files
from ldmlab.errors import DataError

DATA = "data.mdb"
_AGAIN = "Unpack the downloaded file again, or download it again."
_OPEN: dict[str, tuple[tuple[int, ...], Any]] = {}  # real path → (process and state of the file, environment)
_opening = threading.Lock()


def is_database(folder: Path) -> bool:
    return (folder / DATA).is_file()


def list_database(folder: Path) -> list[str]:
    """All keys in the order of the database, that of their bytes. DataError where it is damaged or empty, or lmdb is not installed."""
    lmdb = _library(folder)
    try:
        with _environment(folder, _state(folder)).begin() as reading:
            found = [os.fsdecode(key) for key in reading.cursor().iternext(values=False)]
    except lmdb.Error as error:
        raise DataError(f"{folder / DATA} is damaged: {error}. {_AGAIN}") from error
    if not found:
        raise DataError(f"{folder / DATA} is an lmdb without any entry. {_AGAIN}")
    return found


@dataclass(frozen=True)
class Databases:
    """`Contents` of pictures below `root`, of which `folders` are databases: a path there is the folder's and the key."""

    root: Path
    folders: Sequence[str]

    def stamp(self, path: str) -> list[int]:
        folder, _ = self._place(path)
        return Files(self.root).stamp(path if folder is None else f"{folder}/{DATA}")

    def read(self, path: str) -> bytes:
        folder, key = self._place(path)
        if folder is None:
            return Files(self.root).read(path)
        lmdb = _library(self.root / folder)
        try:
            with _environment(self.root / folder).begin() as reading:
                content: bytes | None = reading.get(os.fsencode(key))
        except lmdb.Error as error:
            raise OSError(str(error)) from error
        if content is None:
            raise OSError("the database has no such key")
        return content

    def _place(self, path: str) -> tuple[str | None, str]:
        """Database and key; None where the path is of a file."""
        for folder in self.folders:
            if folder == ".":
                return folder, path
            if path.startswith(prefix := folder.rstrip("/") + "/"):
                return folder, path.removeprefix(prefix)
        return None, path


def _library(folder: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise DataError(f"{folder} is an lmdb, which needs the extra lmdb: pip install 'ldmlab[lmdb]'.") from error
    return lmdb


def _state(folder: Path) -> tuple[int, ...]:
    stat = (folder / DATA).stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _environment(folder: Path, state: tuple[int, ...] | None = None) -> Any:
    """The open database, one in each process: lmdb allows no second one, and none that a fork has inherited.

    state: of the file; where it was opened in another state it is opened again. None: as it was opened.
    """
    place = os.path.realpath(folder)
    with _opening:
        known, environment = _OPEN.get(place, ((), None))
        if environment is not None and known[0] == os.getpid() and state in (None, known[1:]):
            return environment
        if environment is not None:
            environment.close()
        now = _state(folder)
        environment = _opened(folder, now[1])
        _OPEN[place] = ((os.getpid(), *now), environment)
        return environment


def _opened(folder: Path, size: int) -> Any:
    """size: bytes of the file. A read beyond its end would end the process, so a database that is cut short is refused here."""
    lmdb = _library(folder)
    try:
        environment = lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DataError(f"{folder / DATA} cannot be read as an lmdb: {error}. {_AGAIN}") from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        environment.close()
        raise DataError(f"{folder / DATA} is cut short: {size} of {needed} bytes. {_AGAIN}")
    return environment
