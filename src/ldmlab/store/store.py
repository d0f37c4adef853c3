"""The store: every result has an address made from what it is a function of, and nothing finished is ever overwritten.

    id = sha256(canonical JSON of the stage's completed options + upstream ids + the stage's version number)

A folder `store/<stage>/<name>-<id>/` is finished when it holds `done.json`, written last, with the sha256 of each result file.
Every file is written beside its place and renamed into it, so a kill at any moment leaves the old file or the new one.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import DataError
from ldmlab.store.files import atomic, read_json, sha256_file, write_json, writing
from ldmlab.store.integrity import Memory, hash_files, settle, stamp_of
from ldmlab.store.lock import Lock, holder

__all__ = ["Address", "Store", "atomic", "canonical", "make_id", "read_json", "sha256_file", "write_json"]

ID_LENGTH = 12
LOCK = ".building"  # in a stage's folder


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def make_id(stage: str, version: int, options: dict[str, Any], upstream: dict[str, str]) -> str:
    """The first 12 hex digits of the sha256 described above."""
    text = canonical({"stage": stage, "version": version, "options": options, "upstream": upstream})
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


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


class Place(NamedTuple):
    """Where a finished stage lies, and what its seal must say of it."""

    folder: Path
    stage: str
    id: str


def _passing(path: Path) -> bool:
    """What is in a stage's folder and no result: locks, checkpoints, the mirror's own files."""
    return path.name.startswith(".") or path.parts[0] in ("checkpoints", "wandb")


def altered_id(id: str, altered: dict[str, str]) -> str:
    """A stage's id, followed by 8 hex digits of what was altered in it after it was sealed."""
    return f"{id}+{hashlib.sha256(canonical(altered).encode()).hexdigest()[:8]}" if altered else id


def _seal_sha256(seal: dict[str, Any]) -> str:
    """Of the seal itself, so that an altered `done.json` is named too."""
    return hashlib.sha256(canonical({k: v for k, v in seal.items() if k != "sha256"}).encode()).hexdigest()


def _read_seal(place: Place) -> dict[str, Any]:
    path, stage, id = place.folder / "done.json", place.stage, place.id
    seal = read_json(path)
    whole = isinstance(seal, dict) and isinstance(seal.get("files"), dict) and seal.get("sha256") == _seal_sha256(seal)
    if not whole or (seal["stage"], seal["id"]) != (stage, id):
        raise DataError(
            f"{path} was altered: it is no longer the seal of this {stage} stage, so its files cannot be trusted. "
            f"Remove {path.parent} and run the same command to build it again."
        )
    return dict(seal)


def _other_way(size: int | None) -> str:
    """The second way out of an altered file; there is none for a missing one."""
    return (
        "" if size is None else "; or use it as it is with verify=false, which gives everything made from it another id"
    )


class Store:
    """Folders by address, their seals and their locks.

    Args:
        root: the folder `store=`. Raises DataError when it is a file or no name at all.
        verify: refuse a finished stage with a file that is not what was sealed. False: use such a file; its own sha256 then
            enters every id that stands on it (`upstream_id`), and the cards say so (`altered_upstream`).
    """

    def __init__(self, root: Path | str, verify: bool = True):
        if not str(root).strip():
            raise DataError("store= is empty. Name the folder for results: store=store.")
        self.verify = verify
        self._memories: dict[str, Memory] = {}
        self._named: dict[str, Address | Path] = {}  # by the text that stands in downstream addresses
        try:
            self.root = Path(root).expanduser().resolve()
            solid = next(p for p in (self.root, *self.root.parents) if p.exists())
        except (OSError, RuntimeError, ValueError) as error:  # too long, no such user's home, a NUL
            said = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"store={str(root)[:80]} is no folder's name: {said}. Name one that can be made.") from None
        if not solid.is_dir():
            raise DataError(f"store={root}: {solid} is a file. Name a folder, which is made if it is missing.")

    @property
    def writable(self) -> bool:
        """Whether results can be added; a finished run prints its result from a read-only store too."""
        return not self.root.exists() or os.access(self.root, os.W_OK)

    def folder(self, address: Address) -> Path:
        return self.root / address.stage / f"{address.name}-{address.id}"

    def _place(self, at: Address | Path) -> Place:
        """A stage by its address, or one of another run by its folder."""
        if isinstance(at, Address):
            return Place(self.folder(at), at.stage, at.id)
        return Place(at, at.parent.name, at.name.rpartition("-")[2])

    def done(self, at: Address | Path) -> dict[str, Any] | None:
        """The seal of a finished stage, or None; looks at names and sizes alone.

        Raises DataError when the seal is damaged, or a sealed file is missing or (with `verify`) has another size.
        """
        folder, stage, _ = place = self._place(at)
        if not (folder / "done.json").exists():
            return None
        seal = _read_seal(place)
        for name, entry in seal["files"].items():
            path = folder / name
            size = path.stat().st_size if path.exists() else None
            if size == entry["bytes"] or (size is not None and not self.verify):
                continue
            found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            raise DataError(
                f"{path} {found}, but {folder / 'done.json'} says that this {stage} is finished. "
                f"Restore the file, or remove {folder} and run the same command to build it again{_other_way(size)}."
            )
        return seal

    def finished(self, at: Address | Path) -> bool:
        """Whether the stage is sealed and its files are what was sealed: ask before using it.

        Raises DataError when a file was altered and `verify` is on.
        """
        if self.done(at) is None:
            return False
        self.verified(at)
        return True

    def verified(self, at: Address | Path) -> dict[str, str]:
        """sha256 of each file of a finished stage as it is now; reads only what changed since it was last hashed.

        Raises DataError when the stage is not finished, and when a file was altered and `verify` is on.
        """
        seal, (folder, stage, _) = self.done(at), self._place(at)
        if seal is None:
            raise DataError(f"{folder} is not finished. Run the same command again; it resumes.")
        try:
            found = self._memory(at).sha256_of(seal["files"])
        except OSError as error:
            raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}. Make it readable.") from None
        altered = [name for name, sha256 in found.items() if sha256 != seal["files"][name]["sha256"]]
        if altered and self.verify:
            more = f" (and {len(altered) - 1} more files)" if len(altered) > 1 else ""
            raise DataError(
                f"{folder / altered[0]}{more} was altered: its sha256 is not the one in done.json, so this {stage} stage "
                f"is not used. Remove {folder} and run the same command to build it again{_other_way(0)}."
            )
        return found

    def alterations(self, at: Address | Path) -> dict[str, str]:
        """Files of a finished stage that are not what was sealed, with their own sha256; empty when nothing was altered."""
        seal = self.done(at)
        if seal is None:
            return {}
        return {n: sha256 for n, sha256 in self.verified(at).items() if sha256 != seal["files"][n]["sha256"]}

    def upstream_id(self, at: Address | Path) -> str:
        """The stage's id as addresses downstream write it: with verify=false, altered files make it another id."""
        text = altered_id(self._place(at).id, {} if self.verify else self.alterations(at))
        self._named[text] = at
        return text

    def altered_upstream(self, address: Address) -> dict[str, dict[str, str]]:
        """Every altered file that a stage stands on, however far up: `<stage>/<name>-<id>` → file → sha256; for its card.

        Knows the addresses whose `upstream_id` was asked for in this command.
        """
        if self.verify:
            return {}
        found: dict[str, dict[str, str]] = {}
        for text in address.upstream.values():
            if (above := self._named.get(text)) is not None:
                folder = self._place(above).folder
                altered = self.alterations(above)
                found |= {f"{folder.parent.name}/{folder.name}": altered} if altered else {}
                found |= self.altered_upstream(above) if isinstance(above, Address) else {}
        return found

    def check(self, address: Address, name: str) -> Path:
        """A file of a finished stage, whose content is what was sealed. Raises DataError when it is not (see `verified`)."""
        if name not in self.verified(address):
            raise DataError(f"{self.folder(address) / name} is no result of this {address.stage}.")
        return self.folder(address) / name

    def seal(self, address: Address, seconds: float) -> None:
        """Declare the stage finished: every file that stays is hashed into `done.json`."""
        folder = self.folder(address)
        kept = [
            path for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "done.json" and not _passing(path.relative_to(folder))
        ]  # fmt: skip
        settle(kept)
        stamps = {path: stamp_of(path) for path in kept}
        names = {path: str(path.relative_to(folder)) for path in kept}
        hashed = hash_files(kept)
        files = {names[path]: found.entry() for path, found in hashed.items()}
        seal = {"stage": address.stage, "id": address.id, "seconds": seconds, "files": files}
        write_json(folder / "done.json", seal | {"sha256": _seal_sha256(seal)})
        self._memory(address).remember({names[path]: [stamps[path], found.sha256] for path, found in hashed.items()})

    def _memory(self, at: Address | Path) -> Memory:
        folder, stage, id = self._place(at)
        key = f"{stage}-{id}"
        if key not in self._memories:
            self._memories[key] = Memory(folder, self.root / ".verified" / f"{key}.json")
        return self._memories[key]

    def busy(self, address: Address) -> bool:
        """Whether another process builds the stage now, as far as can be told from here (`lock.holder`)."""
        return holder(self.folder(address) / LOCK) is not None

    @contextlib.contextmanager
    def building(self, address: Address, say: Any = print) -> Iterator[Path]:
        """The stage's folder, locked against other processes, here and on other machines; a second one waits and says for whom.

        Raises DataError at the end when another process took this one for dead meanwhile, and builds the stage itself.
        """
        folder = self.folder(address)
        lock = Lock(folder / LOCK)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not lock.take():
                say(f"{address.stage} {address.id} is being built by {holder(lock.path) or 'a process'}; waiting")
                lock.wait()
        try:
            yield folder
            if lock.lost:
                raise DataError(
                    f"{folder}: this process stood still for more than {lock.stale:.0f} s, and {holder(lock.path) or 'another one'} "
                    f"builds the {address.stage} now. Run the same command again."
                )
        finally:
            lock.release()
