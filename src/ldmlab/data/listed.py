"""Pictures in folders with lists of which belong to a split, as ImageNet, LSUN, CelebA-HQ, FFHQ and Places are downloaded.

N images of a split.
"""

import io
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ldmlab.data.base import SPLITS, Split
from ldmlab.data.databases import Databases, is_database, list_database
from ldmlab.data.files import list_pictures
from ldmlab.data.listing import Listing
from ldmlab.data.pictures import Layout, PictureFiles
from ldmlab.errors import DataError
from ldmlab.ranges import File

ListedLabels = Literal["folders", "list", "none"]
_SPAN = re.compile(r"(\d+):(\d+)")
Line = tuple[str, str | None]  # what names a picture, and its class where the list says one


@dataclass(frozen=True)
class ListedLayout(Layout):
    """The pictures that a list names.

    train_folder, val_folder, test_folder: where the pictures of a split are, below `root`; null: the split has none. The folder may be
        an lmdb, whose keys are the paths.
    train, val, test: which of them belong to the split. null: all. `first:end`: by their places among all of the folder, names in
        natural order, counted from 0. A file (below root, or anywhere): a line names a picture by its path in the folder, by its file's
        name or by that without suffix, and may give its class, after a blank or a comma; or all lines are numbers, places among all of
        the folder in the order of paths. Numbers may also stand in the pickle files of the official code.
    labels: folders: of a picture without a class in the list, the first folder on its way; list: of the list alone; none.
    classes: file with a class on each line; a number behind it is left out. null: the sorted names of the classes that occur in train.
    leave_out: names of files that are not counted and not used.
    """

    train_folder: File | None = "."
    val_folder: File | None = "."
    test_folder: File | None = None
    train: File | None = None
    val: File | None = None
    test: File | None = None
    labels: ListedLabels = "none"
    classes: File | None = None
    leave_out: Sequence[str] = ()

    def listing(self, split: Split | None = None) -> Listing:
        if not self.place.is_dir():
            raise DataError(f"data.root={self.root}: no such folder. Give the folder that holds the pictures.")
        lists: dict[Split, tuple[str | None, str | None]] = {
            "train": (self.train_folder, self.train),
            "val": (self.val_folder, self.val),
            "test": (self.test_folder, self.test),
        }
        found = Lists(self.place, lists, self.labels, self.classes, tuple(self.leave_out))
        return found.listing([split] if split is not None else [one for one in SPLITS if lists[one][0] is not None])


class Listed(PictureFiles):
    """Pictures with lists; options: `ListedLayout`."""

    layout = ListedLayout


@dataclass
class Lists:
    """Folder and list of each split; see `Listed`."""

    root: Path
    lists: dict[Split, tuple[str | None, str | None]]
    labels: ListedLabels
    classes: str | None
    leave_out: tuple[str, ...]
    _folders: dict[str, list[str]] = field(default_factory=dict)

    def listing(self, splits: list[Split]) -> Listing:
        pictures = {split: self._pictures(split) for split in splits}
        paths: dict[Split, list[str]] = {split: sorted(pictures.get(split, {})) for split in SPLITS}
        rule = "; ".join(f"{split}: {self._rule(split)}" for split in SPLITS if self.lists[split][0] is not None)
        if self.labels == "none":
            return Listing(self.root, paths, None, (), rule, False, stored=self._stored())
        names = self._class_names(pictures.get("train"))
        class_of = {path: self._class(path, said, names) for own in pictures.values() for path, said in own.items()}
        return Listing(self.root, paths, class_of, names, rule, False, stored=self._stored())

    def _stored(self) -> Databases | None:
        databases = [folder for folder in self._folders if is_database(self.root / folder)]
        return Databases(self.root, databases) if databases else None

    def _rule(self, split: Split) -> str:
        folder, listed = self.lists[split]
        return f"{folder}, {Path(listed).name if listed else 'all'}"

    def _all(self, folder: str) -> list[str]:
        """Paths in the folder, sorted."""
        if folder not in self._folders:
            place = self.root / folder
            own = list_database(place) if is_database(place) else list_pictures(place) if place.is_dir() else []
            if not own and (packed := next(self.root.glob("*/data.mdb"), None)) is not None:
                raise DataError(
                    f"{place} holds no pictures, and {packed.parent} is an lmdb (LSUN), which data.<split>_folder={packed.parent.name} "
                    "reads (pip install 'ldmlab[lmdb]'). Or export it once with data.py of github.com/fyu/lsun: "
                    f"python data.py export {packed.parent} --out_dir {place}"
                )
            if not place.is_dir():
                raise DataError(f"{place}: no such folder. Give data.root, or data.<split>_folder below it.")
            self._folders[folder] = [path for path in own if Path(path).name not in self.leave_out]
        return self._folders[folder]

    def _pictures(self, split: Split) -> dict[str, str | None]:
        """Path below the root → class that the list gives it."""
        folder, listed = self.lists[split]
        if folder is None:
            raise DataError(
                f"data.{split}_folder=null: this set has no split {split!r}. Give the folder of its pictures."
            )
        known = self._all(folder)
        lines = [(path, None) for path in known] if listed is None else list(self._lines(split, listed, known))
        prefix = "" if folder == "." else folder.rstrip("/") + "/"
        return {prefix + path: said for path, said in lines}

    def _lines(self, split: Split, listed: str, known: list[str]) -> Iterator[tuple[str, str | None]]:
        """The pictures of a list, by their paths in the folder."""
        option = f"data.{split}={listed}"
        if span := _SPAN.fullmatch(listed):
            first, end = int(span[1]), int(span[2])
            if not first < end <= len(known):
                raise DataError(
                    f"{option}: the folder has {len(known)} pictures, 0 … {len(known) - 1}. Copy them all, or change it."
                )
            yield from ((path, None) for path in sorted(known, key=_natural)[first:end])
            return
        lines = _read(self.root / listed, option)
        if all(name.isdigit() and said is None for name, said in lines) and not _named(lines[0][0], known):
            if strange := [name for name, _ in lines if int(name) >= len(known)]:
                raise DataError(f"{option} names picture {strange[0]}, and the folder has {len(known)}. Copy them all.")
            yield from ((known[int(name)], None) for name, _ in lines)
            return
        of = _by_name(known)
        if lost := [name for name, _ in lines if not any(key in of for key in _keys(name))]:
            raise DataError(
                f"{option} names {len(lost)} pictures that are not there, the first is {lost[0]}. Copy them, or change the list."
            )
        yield from ((next(of[key] for key in _keys(name) if key in of), said) for name, said in lines)

    def _class_names(self, train: dict[str, str | None] | None) -> tuple[str, ...]:
        if self.classes is not None:
            return tuple(re.split(r"[\s,]+\d+$", name)[0] for name in _text(self.root / self.classes, "data.classes"))
        said = {self._class(path, word, None) for path, word in (train or self._pictures("train")).items()}
        return tuple(sorted(said, key=_natural))

    def _class(self, path: str, said: str | None, names: tuple[str, ...] | None) -> str:
        """names: those that are allowed; a number in the list counts in them. None: any."""
        if said is None and self.labels == "folders":
            folder = next(
                (f for f, _ in self.lists.values() if f not in (None, ".") and path.startswith(f"{f}/")), None
            )
            parts = path.removeprefix(f"{folder}/").split("/")
            said = parts[0] if len(parts) > 1 else None
        if said is None:
            raise DataError(
                f"{self.root / path} has no class: no class folder, and no list says one. Use data.labels=none, or a list with classes."
            )
        if names is None or said in names:
            return said
        if said.isdigit() and int(said) < len(names):
            return names[int(said)]
        raise DataError(
            f"{self.root / path}: its class {said!r} is none of the {len(names)} classes. Give data.classes, or mend the list."
        )


def _natural(name: str) -> list[Any]:
    """2.jpg before 10.jpg."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _keys(name: str) -> tuple[str, str, str]:
    path = name.lstrip("/")
    return path, f"*/{Path(path).name}", f"*/{Path(path).stem}"


def _by_name(known: list[str]) -> dict[str, str]:
    """Pictures by path, by file name and by that without suffix; names that two have are left out."""
    found: dict[str, str] = {}
    for keys in zip(*(_keys(path) for path in known), strict=True):
        twice = {key for key, other in zip(sorted(keys), sorted(keys)[1:], strict=False) if key == other}
        found |= {key: path for key, path in zip(keys, known, strict=True) if key not in twice and key not in found}
    return found


def _named(name: str, known: list[str]) -> bool:
    """Whether a number is the name of a file: 10009 of 10009.jpg."""
    return any(Path(path).stem == name for path in known)


def _text(file: Path, option: str) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{option}: {file} cannot be read as text: {error}. Give the list's path, below data.root or whole."
        ) from error
    return [line for line in lines if line]


def _read(file: Path, option: str) -> list[Line]:
    if file.suffix in (".p", ".pkl", ".pickle"):
        return [(str(number), None) for number in _unpickled(file, option)]
    words = [re.split(r"[\s,]+", line) for line in _text(file, option)]
    if words and words[0][0] == "ImageId":  # the head of Kaggle's csv
        words = words[1:]
    if not words:
        raise DataError(f"{option}: {file} names no picture.")
    return [(line[0], line[1] if len(line) > 1 else None) for line in words]


class _Numbers(pickle.Unpickler):
    """Reads lists and arrays of numbers; nothing else is made, so that no file can run code."""

    ALLOWED = frozenset(
        (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, not numbers alone")
        return super().find_class(module, name)


def _unpickled(file: Path, option: str) -> list[int]:
    try:
        return [int(number) for number in _Numbers(io.BytesIO(file.read_bytes())).load()]
    except Exception as error:  # a pickle that is none raises many kinds
        raise DataError(
            f"{option}: {file} is no pickle of a list of numbers: {error}. Write them into a text file."
        ) from error
