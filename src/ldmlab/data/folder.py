"""A folder of pictures as a data set: classes from sub-folders, splits that never mix, damaged files named.

Shape letters: H W pixels, N images of the split.
"""

import hashlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from ldmlab.data.base import SPLITS, ImageDataset, Sample, Split, digest
from ldmlab.data.duplicates import in_two_splits
from ldmlab.data.fields import label
from ldmlab.data.files import SUFFIXES, Survey, list_pictures, readable
from ldmlab.data.transforms import CROP_RULE, center_crop, read_rgb
from ldmlab.errors import ConfigError, DataError
from ldmlab.ranges import File, Given, MaybeImages, Pixels, Share

log = logging.getLogger(__name__)

Labels = Literal["auto", "folders", "none"]
_SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_HASH_RULE = "u = first 8 bytes of sha256(relative path) / 2^64; val: u < {val}; test: u >= 1 - {test}; train: the rest"


@dataclass(frozen=True)
class Listing:
    """Every picture of a root, sorted into splits; paths are relative to the root, classes per path (None: no
    labels)."""

    root: Path
    paths: dict[Split, list[str]]
    class_of: dict[str, str] | None
    class_names: tuple[str, ...]
    rule: str
    by_folder: bool  # split by train/ and val/ folders, not by hash

    def labels(self, paths: list[str]) -> list[int]:
        """Class numbers of `paths`; [] when there are no classes."""
        if self.class_of is None:
            return []
        number = {name: k for k, name in enumerate(self.class_names)}
        return [number[self.class_of[path]] for path in paths]

    def pictures(self, split: Split) -> list[str]:
        """Paths of one split; DataError when it has none."""
        if split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
        if self.paths[split]:
            return self.paths[split]
        counts = ", ".join(f"{name} {len(paths)}" for name, paths in self.paths.items())
        if self.by_folder:
            way_out = (
                f"Add pictures in {self.root}/{split}/, or give a root without split folders to have them divided."
            )
        else:
            option = "lower data.val_fraction" if split == "train" else f"raise data.{split}_fraction"
            way_out = f"Add pictures, or {option}."
        raise DataError(
            f"data.root={self.root} has no picture for the split {split!r} ({counts}; {self.rule}). {way_out}"
        )


def split_of(path: str, val_fraction: float, test_fraction: float) -> Split:
    """The split of a picture, from its relative path alone: adding pictures moves no other one, and changing one
    fraction leaves the other split as it was."""
    u = int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big") / 2**64
    return "val" if u < val_fraction else "test" if u >= 1 - test_fraction else "train"


def list_folder(root: str | Path, val_fraction: float, test_fraction: float, labels: Labels) -> Listing:
    """Finds pictures, splits and classes below `root`; DataError naming `data.root` where that is not possible."""
    place = Path(root).expanduser()
    _check_fractions(val_fraction, test_fraction)
    if not place.exists():
        raise DataError(
            f"data.root={root}: no such folder. Give the folder that holds the pictures (or train/ and val/)."
        )
    if not place.is_dir():
        raise DataError(f"data.root={root} is a file, not a folder. Give the folder that holds the pictures.")
    paths = list_pictures(place)
    if not paths:
        state = "is empty" if not any(place.iterdir()) else "holds no pictures"
        raise DataError(
            f"data.root={root} {state}. Pictures are files named {', '.join(f'*{s}' for s in SUFFIXES)}, in the folder "
            "itself or in sub-folders (hidden ones are not looked at); for WebDataset tars use data=shards."
        )
    fixed = _split_folders(place, paths)
    if fixed is None:
        by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for path in paths:
            by_split[split_of(path, val_fraction, test_fraction)].append(path)
        rule, depth = _HASH_RULE.format(val=val_fraction, test=test_fraction), 0
    else:
        by_split, depth = fixed, 1
        rule = "the folders train/, val/ and test/ of the root"
    class_of = _classes(place, paths, labels, depth)
    names = () if class_of is None else tuple(sorted(set(class_of.values())))
    if class_of is not None and fixed is not None:
        known = {class_of[path] for path in by_split["train"]}
        if strange := sorted(set(names) - known):
            raise DataError(
                f"data.root={root}: the classes {', '.join(strange[:5])} appear in val/ or test/ but not in train/. "
                "Give each split the same class folders, or set data.labels=none."
            )
    return Listing(place, by_split, class_of, names, rule, fixed is not None)


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise ConfigError(f"data.{name}={value} must lie in [0, 1); 0.1 keeps one picture in ten.")
    if val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} leave nothing to train on; "
            "lower one of them."
        )


def _split_folders(root: Path, paths: list[str]) -> dict[Split, list[str]] | None:
    """Pictures per split when the root has train/ beside val/ or test/; None when the root is not split by folders."""
    tops = {path.split("/", 1)[0] if "/" in path else "" for path in paths}
    splits = tops & set(_SPLIT_FOLDERS)
    if "train" not in splits or (len(splits) == 1 and len(tops) > 1):
        return None  # no train/, or a class that happens to be called "train" (COCO has one)
    if other := sorted(tops - splits):
        where = (
            "pictures beside them"
            if other == [""]
            else f"other folders: {', '.join(name for name in other[:5] if name)}"
        )
        raise DataError(
            f"data.root={root} has the split folders {', '.join(sorted(splits))} and {where}. Move those away, "
            "or rename the split folders if they are classes."
        )
    by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
    origin: dict[Split, str] = {}
    for path in paths:
        top = path.split("/", 1)[0]
        split = _SPLIT_FOLDERS[top]
        if origin.setdefault(split, top) != top:
            raise DataError(
                f"data.root={root} has both {origin[split]}/ and {top}/, which mean the same split. Remove one."
            )
        by_split[split].append(path)
    return by_split


def _classes(root: Path, paths: list[str], labels: Labels, depth: int) -> dict[str, str] | None:
    """Class of each path: the folder name at `depth`; None when the set has no labels."""
    if labels == "none":
        return None
    parts = {path: path.split("/") for path in paths}
    loose = [path for path, names in parts.items() if len(names) < depth + 2]
    if not loose:
        return {path: names[depth] for path, names in parts.items()}
    if labels == "auto" and len(loose) == len(paths):
        return None
    raise DataError(
        f"data.root={root}: {len(loose)} of {len(paths)} pictures lie in no class folder, the first is {loose[0]}. "
        "Move them into class folders, or set data.labels=none to use all pictures without labels."
    )


class Folder:
    """Pictures below `root`, cropped and resized by ADM's rule (`transforms.center_crop`).

    labels:         auto: the sub-folder names are the classes when every picture lies in one, and there are none when
                    no picture does; folders: they must be; none: sub-folders mean nothing.
    val_fraction,
    test_fraction:  of a root without train/ and val/ folders, chosen by a hash of each picture's relative path.
    max_unreadable: how many pictures of this split may be damaged. They are named in the log, left out, and listed in
                    `split_record()`; one more than that raises DataError with their names. All files are read once for
                    this at the first start.
    cache:          folder that remembers what was read; None reads every file at every start.
    """

    def __init__(
        self,
        root: File,
        resolution: Pixels,
        split: Annotated[Split, Given] = "train",
        val_fraction: Share = 0.1,
        test_fraction: Share = 0.0,
        labels: Labels = "auto",
        max_unreadable: MaybeImages = 0,
        flip: bool = True,
        cache: Annotated[Path | None, Given] = None,
    ):
        if resolution < 1:
            raise ConfigError(f"data.resolution={resolution} must be 1 or more.")
        listing = list_folder(root, val_fraction, test_fraction, labels)
        found = Survey(listing.root, cache)(listing.pictures(split))
        self._paths = readable(listing.root, found, max_unreadable)
        self._excluded = {path: what.problem for path, what in found.items() if what.problem is not None}
        for path, problem in self._excluded.items():
            log.warning("left out: %s cannot be read (%s)", listing.root / path, problem)
        if not self._paths:
            raise DataError(f"data.root={root}: none of the {len(found)} pictures of the split {split!r} can be read.")
        self._listing = listing
        self._sha256 = [found[path].sha256 for path in self._paths]
        self.resolution = resolution
        self.split = split
        self.flip = flip
        self.class_names = listing.class_names
        self.declared = (label(len(self.class_names)),) if listing.class_of is not None else ()
        self.fields: tuple[str, ...] = tuple(field.name for field in self.declared)
        self._labels = np.array(listing.labels(self._paths), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> Sample:
        file = self._listing.root / self._paths[i]
        try:
            image = center_crop(read_rgb(file), self.resolution)
        except Exception as error:
            raise DataError(
                f"{file} could be read when the data set was opened and cannot now: {error}. "
                "Start again to have it checked."
            ) from error
        return {"image": image, "label": int(self._labels[i])} if self.fields else {"image": image}

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        return [self[i] for i in indices]

    def labels(self) -> np.ndarray:
        """int64 [N]."""
        if not self.fields:
            raise DataError(f"data.root={self._listing.root} has no labels: its pictures are not in class folders.")
        return self._labels

    def in_two_splits(self, other: ImageDataset) -> list[list[str]]:
        """Groups of paths with equal content in this split and in another one of the same root."""
        splits = {
            one.split: zip(one._paths, one._sha256, strict=True) for one in (self, other) if isinstance(one, Folder)
        }
        return in_two_splits(splits)

    def fingerprint(self) -> str:
        """sha256 (hex) over relative paths, contents, classes, split rule, crop rule and resolution."""
        return digest(
            {
                "files": [[path, sha256] for path, sha256 in zip(self._paths, self._sha256, strict=True)],
                "labels": self._labels.tolist(),
                "class_names": self.class_names,
                "split": self.split,
                "rule": self._listing.rule,
                "crop": CROP_RULE,
                "resolution": self.resolution,
            }
        )

    def split_record(self) -> dict[str, object]:
        """How the root was divided, for cards: rule, pictures found per split, and what was left out of this one."""
        return {
            "rule": self._listing.rule,
            "found": {split: len(paths) for split, paths in self._listing.paths.items()},
            "split": self.split,
            "images": len(self),
            "unreadable": dict(self._excluded),
            "per_class": {self.class_names[k]: n for k, n in sorted(Counter(self._labels.tolist()).items())},
        }
