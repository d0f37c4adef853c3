"""Picture files as a data set, with what stands beside each of them. Where the files are and what is beside them says a `Listing`.

Shape letters: H W pixels, N images of the split.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from ldmlab.data.base import ImageDataset, Sample, Split, digest
from ldmlab.data.beside import Beside, Size
from ldmlab.data.bits import opened, pixel_kind, square
from ldmlab.data.duplicates import in_two_splits
from ldmlab.data.fields import label
from ldmlab.data.files import Survey, readable
from ldmlab.data.listing import Listing
from ldmlab.data.transforms import CROP_RULE
from ldmlab.data.view import View
from ldmlab.errors import ConfigError, DataError
from ldmlab.ranges import File, Given, ImageBits, ImageChannels, MaybeImages, Pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout(ABC):
    """How a set of picture files lies in its folder; a subclass adds its options, and says in `listing` what they mean.

    What all have in common:
    flip:           training may mirror an image left-right.
    channels, bits: of the images (`bits.opened`).
    max_unreadable: how many pictures of this split may be damaged. They are named in the log, left out, and listed in
                    `split_record()`; one more than that raises DataError with their names. All files are read once for
                    this at the first start.
    cache:          folder that remembers what was read; None reads every file at every start.
    """

    root: File
    resolution: Pixels
    split: Annotated[Split, Given] = "train"
    _: KW_ONLY
    flip: bool = False
    channels: ImageChannels = 3
    bits: ImageBits = 8
    max_unreadable: MaybeImages = 0
    cache: Annotated[Path | None, Given] = None

    @property
    def place(self) -> Path:
        return Path(self.root).expanduser()

    @abstractmethod
    def listing(self, split: Split | None = None) -> Listing:
        """Which pictures there are, and what is beside them: of one split at least, or of all that there are (None)."""
        ...


class PictureFiles:
    """The pictures of one split, cropped and resized by ADM's rule (`transforms.center_crop`), and their fields in the same square.

    A subclass names its layout, whose options are those of its constructor.
    """

    layout: ClassVar[type[Layout]]

    def __init_subclass__(cls) -> None:
        """The constructor has the signature of the layout's: its options are what the configuration checks."""
        plain = cls.__init__

        @wraps(cls.layout.__init__)
        def init(self: PictureFiles, *options: Any, **named: Any) -> None:
            plain(self, *options, **named)

        setattr(cls, "__init__", init)  # noqa: B010

    def __init__(self, *options: Any, **named: Any):
        layout = self.layout(*options, **named)
        if layout.resolution < 1:
            raise ConfigError(f"data.resolution={layout.resolution} must be 1 or more.")
        split, cache = layout.split, layout.cache
        listing = layout.listing(split)
        found = Survey(listing.root, cache, bits=layout.bits, contents=listing.contents)(listing.pictures(split))
        self._paths = readable(listing.root, found, layout.max_unreadable)
        self._excluded = {path: what.problem for path, what in found.items() if what.problem is not None}
        for path, problem in self._excluded.items():
            log.warning("left out: %s cannot be read (%s)", listing.root / path, problem)
        if not self._paths:
            raise DataError(
                f"data.root={listing.root}: none of the {len(found)} pictures of the split {split!r} can be read."
            )
        self._listing = listing
        self._sha256 = [found[path].sha256 for path in self._paths]
        self._beside = {part.field.name: part.contents(self._paths, cache) for part in listing.beside}
        self.resolution, self.channels, self.bits = layout.resolution, layout.channels, layout.bits
        self.split: Split = split
        self.flip = layout.flip
        self.class_names = listing.class_names
        self.declared = (
            *([label(len(self.class_names))] if listing.class_of is not None else []),
            *(part.field for part in listing.beside),
        )
        self.fields: tuple[str, ...] = tuple(field.name for field in self.declared)
        self._labels = np.array(listing.labels(self._paths), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> Sample:
        path = self._paths[i]
        try:
            picture = opened(self._listing.contents.read(path), self.channels, self.bits)
            sample: Sample = {"image": square(picture, self.resolution)}
        except Exception as error:
            raise DataError(
                f"{self._listing.root / path} could be read when the data set was opened and cannot now: {error}. "
                "Start again to have it checked."
            ) from error
        if self._listing.class_of is not None:
            sample["label"] = int(self._labels[i])
        view = View(*picture.size, self.resolution)
        for part in self._listing.beside:
            sample[part.field.name] = beside_of(part, path, picture.size, view, self._listing.root)
        return sample

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        return [self[i] for i in indices]

    def labels(self) -> np.ndarray:
        """int64 [N]."""
        if self._listing.class_of is None:
            raise DataError(f"data.root={self._listing.root} has no labels: its pictures are not in class folders.")
        return self._labels

    def in_two_splits(self, other: ImageDataset) -> list[list[str]]:
        """Groups of paths with equal content in this split and in another one of the same root."""
        splits = {
            one.split: zip(one._paths, one._sha256, strict=True)
            for one in (self, other)
            if isinstance(one, PictureFiles)
        }
        return in_two_splits(splits)

    def fingerprint(self) -> str:
        """sha256 (hex) over relative paths, contents, fields, classes, split rule, crop rule and resolution."""
        return digest(
            {
                "files": [[path, sha256] for path, sha256 in zip(self._paths, self._sha256, strict=True)],
                "labels": self._labels.tolist(),
                "class_names": self.class_names,
                "split": self.split,
                "rule": self._listing.rule,
                "crop": CROP_RULE,
                "resolution": self.resolution,
                **({"beside": self._beside} if self._beside else {}),
                **pixel_kind(self.channels, self.bits),
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


def beside_of(part: Beside, path: str, size: Size, view: View, root: Path) -> Any:
    """What stands beside a picture, as it is in the square that is seen; DataError where it is of another picture."""
    try:
        return view.of(part.field, part(path, size))
    except ValueError as error:
        raise DataError(f"{root / path}: its {part.field.name} is of another picture: {error}.") from error
