"""Which picture files a folder holds, what is in them, and whether they can be read.

A survey reads each file once: its sha256 and whether it decodes. What it found is remembered by (relative path, size,
mtime) so that the next start reads only what changed.
"""

import hashlib
import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import PIL
from PIL import Image, UnidentifiedImageError

from ldmlab.data.bits import opened
from ldmlab.errors import DataError
from ldmlab.store import files as store_files
from ldmlab.store.lock import locked
from ldmlab.terminal import progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")  # in any case
_SAVE_EVERY = 20_000  # files between two saves of a survey

A = TypeVar("A")
B = TypeVar("B")


class Contents(Protocol):
    """What is read of pictures that are named by their paths below one root: files, or entries of a database."""

    def stamp(self, path: str) -> list[int]:
        """Two numbers; a content that changes gets others."""
        ...

    def read(self, path: str) -> bytes:
        """Raises OSError where that is not possible."""
        ...


@dataclass(frozen=True)
class Files:
    """Files below `root`."""

    root: Path

    def stamp(self, path: str) -> list[int]:
        try:
            found = (self.root / path).stat()
        except OSError:  # a link to nowhere: reading it will say so
            return [-1, -1]
        return [found.st_size, found.st_mtime_ns]

    def read(self, path: str) -> bytes:
        if not stat.S_ISREG((self.root / path).stat().st_mode):  # a pipe would be waited for
            raise OSError("not a file")
        return (self.root / path).read_bytes()


@dataclass(frozen=True)
class Found:
    """What a survey knows of one file; `problem` is None when it decodes."""

    sha256: str
    problem: str | None


def list_pictures(root: Path) -> list[str]:
    """Relative posix paths of all picture files below `root`, sorted; hidden files and folders are left out, links are
    followed."""
    found: list[str] = []
    entered: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link back up
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = Path(folder).relative_to(root)
        found += [
            (prefix / name).as_posix() for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return sorted(found)


def write_json(file: Path, value: object) -> None:
    """Equal values are equal bytes: what is written here takes part in ids."""
    store_files.write_json(file, value, compact=True)


def workers(limit: int = 16) -> int:
    """Threads for reading and decoding: the processors this process may use."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(limit, own))


def in_order(work: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`map` on threads, results in order; at most eight items per thread are under way, so memory stays bounded."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[B]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 8 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Survey:
    """Contents and readability of the files below one folder, remembered in `cache` (None: nothing is remembered).

    problem: why a file's content cannot be used, or None; of pictures, `picture_problem`. bits: of pictures. contents: where the
    bytes are, if not in files.
    """

    def __init__(
        self,
        root: Path,
        cache: Path | None,
        problem: Callable[[bytes], str | None] | None = None,
        bits: int = 8,
        contents: Contents | None = None,
    ):
        self.root, self._problem = root, problem or partial(picture_problem, bits=bits)
        self._contents = contents or Files(root)
        place = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
        kind = "files" if bits == 8 else f"files{bits}"  # what can be read with 8 bits may have no 16
        self._memory = None if cache is None else Path(cache) / f"{kind}-{place}.json"

    def __call__(self, paths: list[str]) -> dict[str, Found]:
        """What is known of each of the relative `paths`; reads those that are new or changed."""
        known = self._load()
        stamps = {path: self._contents.stamp(path) for path in paths}
        todo = [path for path in paths if known.get(path, [None])[0] != stamps[path]]
        if todo:
            known.update(self._read_all(todo, stamps))
        return {path: Found(known[path][1], known[path][2]) for path in paths}

    def _read_all(self, paths: list[str], stamps: dict[str, list[int]]) -> dict[str, list[Any]]:
        fresh: dict[str, list[Any]] = {}
        with progress(f"reading {self.root}", len(paths)) as advance:
            for path, found in zip(paths, in_order(self._read, paths, workers()), strict=True):
                fresh[path] = [stamps[path], found.sha256, found.problem]
                advance(1)
                if len(fresh) % _SAVE_EVERY == 0:
                    self._save(fresh)
        self._save(fresh)
        return fresh

    def _read(self, path: str) -> Found:
        try:
            content = self._contents.read(path)
        except OSError as error:
            return Found("", f"cannot be opened: {error.strerror}" if error.strerror else str(error))
        return Found(hashlib.sha256(content).hexdigest(), self._problem(content))

    def _load(self) -> dict[str, list[Any]]:
        if self._memory is None or not self._memory.exists():
            return {}
        try:
            remembered = json.loads(self._memory.read_text())
        except ValueError:
            return {}  # a memory, not a result: it is made again
        return remembered["files"] if remembered.get("pillow") == PIL.__version__ else {}

    def _save(self, fresh: dict[str, list[Any]]) -> None:
        if self._memory is None:
            return
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{self._memory}.building")):  # the splits of one folder share the memory
            write_json(self._memory, {"pillow": PIL.__version__, "files": {**self._load(), **fresh}})


def picture_problem(content: bytes, bits: int = 8) -> str | None:
    """Why a picture cannot be decoded in so many bits, or None when it can."""
    try:
        opened(content, bits=bits)
    except UnidentifiedImageError:
        return "not a picture that Pillow knows"
    except Image.DecompressionBombError:
        return f"it claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, and was not decoded"
    except (
        Exception
    ) as error:  # decoders raise many kinds on damaged files (OSError, SyntaxError, struct.error, zlib.error …)
        return str(error) or type(error).__name__
    return None


def readable(root: Path, found: dict[str, Found], limit: int, option: str = "data.max_unreadable") -> list[str]:
    """The paths that decode, in the given order; DataError when more than `limit` do not."""
    bad = {path: what.problem for path, what in found.items() if what.problem is not None}
    if len(bad) > limit:
        shown = "; ".join(f"{path} ({problem})" for path, problem in list(bad.items())[:5])
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{len(bad)} of {len(found)} pictures in {root} cannot be read: {shown}{more}. "
            f"Repair or remove them, or leave them out with {option}={len(bad)} (now {limit})."
        )
    return [path for path in found if path not in bad]
