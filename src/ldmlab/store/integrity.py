"""Whether files still hold what was sealed: sha256 of each, once per content.

A file that was hashed is remembered by size, times and inode, beside the sealed folders in `store/.verified/`; while these stay,
its content is known without reading it. Large files are compared block by block on several threads.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import DataError
from ldmlab.store.files import read_json, sha256_file, write_json

BLOCK = 64 * 2**20  # bytes
SETTLED_NS = 20_000_000
"""A file younger than this (ns, by its change time) may change again within one tick of the file system's clock, so that its
stamp would stay: it is hashed each time, not remembered. Longer than the ticks of Linux (1 to 10 ms)."""


class Hashed(NamedTuple):
    """Content of one file: size in bytes, sha256 and, of a file larger than a block, sha256 of each block of 64 MiB."""

    bytes: int
    sha256: str
    blocks: list[str] | None

    def entry(self) -> dict[str, Any]:
        """As `done.json` keeps it."""
        plain = {"sha256": self.sha256, "bytes": self.bytes}
        return plain | ({"blocks": self.blocks} if self.blocks is not None else {})


def hash_files(paths: Iterable[Path]) -> dict[Path, Hashed]:
    """Size, sha256 and block sums of files, on several threads (hashing lets go of the interpreter)."""
    listed = list(paths)
    with ThreadPoolExecutor(_threads()) as pool:
        return dict(zip(listed, pool.map(_hash, listed), strict=True))


def _hash(path: Path) -> Hashed:
    size = path.stat().st_size
    if size <= BLOCK:
        return Hashed(size, sha256_file(path), None)
    whole, blocks = hashlib.sha256(), []
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            whole.update(block)
            blocks.append(hashlib.sha256(block).hexdigest())
    return Hashed(size, whole.hexdigest(), blocks)


def stamp_of(path: Path) -> list[int]:
    """What changes when a file is written to, replaced or touched: size, times (ns) and inode."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def settle(paths: Iterable[Path]) -> None:
    """Wait until no file is younger than `SETTLED_NS`; returns at once when a clock runs behind the file system's."""
    newest = max((path.stat().st_ctime_ns for path in paths), default=0)
    wait = newest + SETTLED_NS - time.time_ns()
    if 0 < wait <= SETTLED_NS:
        time.sleep(wait / 1e9 + 1e-3)


class Memory:
    """What is known of the files of one sealed folder. `file`: where it is kept; it may be lost at any time."""

    def __init__(self, folder: Path, file: Path):
        self.folder, self.file = folder, file
        self.known = self._read()  # name → [stamp, sha256]

    def sha256_of(self, sealed: dict[str, dict[str, Any]]) -> dict[str, str]:
        """sha256 of each of the sealed files as it is now. Reads those whose stamp is new.

        Args:
            sealed: file name → its entry in `done.json`; an unaltered file's block sums need not be joined to its sha256.
        """
        stamps = {name: stamp_of(self.folder / name) for name in sealed}
        new = {name: entry for name, entry in sealed.items() if self._known(name, stamps[name]) is None}
        began = time.time_ns()
        found = dict(zip(new, self._hash_all(new), strict=True))
        fresh = {name: [stamps[name], sha256] for name, sha256 in found.items() if stamps[name][2] + SETTLED_NS < began}
        self.remember(fresh)
        return {name: found[name] if name in found else str(self._known(name, stamps[name])) for name in sealed}

    def remember(self, fresh: dict[str, list[Any]]) -> None:
        """Keep name → [stamp, sha256]. Where nothing can be written, as in a read-only store, files are hashed each time."""
        if not fresh:
            return
        self.known |= fresh
        try:
            write_json(self.file, self.known, compact=True)
        except (DataError, OSError):
            return

    def _known(self, name: str, stamp: list[int]) -> str | None:
        entry = self.known.get(name)
        return entry[1] if entry is not None and entry[0] == stamp else None

    def _hash_all(self, entries: dict[str, dict[str, Any]]) -> list[str]:
        with ThreadPoolExecutor(_threads()) as pool:
            small = {n: pool.submit(sha256_file, self.folder / n) for n, e in entries.items() if "blocks" not in e}
            large = {
                n: [pool.submit(_hash_block, self.folder / n, i) for i in range(len(e["blocks"]))]
                for n, e in entries.items() if "blocks" in e
            }  # fmt: skip
            found = {name: done.result() for name, done in small.items()}
            for name, sums in large.items():
                entry = entries[name]
                same = (self.folder / name).stat().st_size == entry["bytes"]
                same = [done.result() for done in sums] == entry["blocks"] and same
                found[name] = entry["sha256"] if same else sha256_file(self.folder / name)
        return [found[name] for name in entries]

    def _read(self) -> dict[str, list[Any]]:
        if not self.file.is_file():
            return {}
        try:
            known = read_json(self.file)
        except DataError:
            return {}  # a memory, not a result: it is made again
        whole = isinstance(known, dict) and all(isinstance(e, list) and len(e) == 2 for e in known.values())
        return known if whole else {}


def _hash_block(path: Path, index: int) -> str:
    with path.open("rb") as file:
        file.seek(index * BLOCK)
        return hashlib.sha256(file.read(BLOCK)).hexdigest()


def _threads() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
