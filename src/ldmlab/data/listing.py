"""Which pictures a data set has, how they are divided, and what stands beside each of them.

N images of a split.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ldmlab.data.base import SPLITS, Split
from ldmlab.data.beside import Beside
from ldmlab.data.files import Contents, Files
from ldmlab.errors import ConfigError, DataError

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
    beside: tuple[Beside, ...] = ()  # what stands beside each picture
    stored: Contents | None = None  # where the pictures are, if not in files below the root

    @property
    def contents(self) -> Contents:
        return self.stored or Files(self.root)

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


def divided(paths: list[str], val_fraction: float, test_fraction: float) -> tuple[dict[Split, list[str]], str]:
    """Pictures per split by a hash of their paths, and the rule in words."""
    by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for path in paths:
        by_split[split_of(path, val_fraction, test_fraction)].append(path)
    return by_split, _HASH_RULE.format(val=val_fraction, test=test_fraction)


def learnt_by_heart(listing: Listing) -> Listing:
    """val and test are the training pictures."""
    train = listing.pictures("train")
    return replace(
        listing, paths={split: train for split in SPLITS}, rule="every split has all of the training pictures"
    )


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise ConfigError(f"data.{name}={value} must lie in [0, 1); 0.1 keeps one picture in ten.")
    if val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} leave nothing to train on; "
            "lower one of them."
        )
