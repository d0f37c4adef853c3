"""What stands beside picture files: captions, boxes, and maps in folders of their own.

Shape letters: H W pixels, N boxes.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ldmlab.data.fields import Field
from ldmlab.data.files import Survey
from ldmlab.errors import DataError

Size = tuple[int, int]  # width and height of a picture


class Beside(Protocol):
    """One field of the pictures of a folder; pictures are named by their paths relative to it."""

    @property
    def field(self) -> Field: ...

    def contents(self, paths: list[str], cache: Path | None) -> list[Any]:
        """What decides the field's values, picture by picture, for json; DataError where a picture has none. `cache`: see `Survey`."""
        ...

    def __call__(self, path: str, size: Size) -> Any:
        """The value for the whole picture (`View.of`). ValueError where it was made for a picture of another size."""
        ...


@dataclass(frozen=True)
class Captions:
    """A text for each picture. where: what they were read from, for messages."""

    field: Field
    texts: Mapping[str, str]
    where: str

    def contents(self, paths: list[str], cache: Path | None) -> list[Any]:
        if missing := [path for path in paths if not self.texts.get(path, "").strip()]:
            raise DataError(_without(missing, "caption", self.where))
        return [self.texts[path] for path in paths]

    def __call__(self, path: str, size: Size) -> str:
        return self.texts[path]

    def joined(self, other: "Captions") -> "Captions":
        return replace(self, texts={**self.texts, **other.texts})


@dataclass(frozen=True)
class Boxes:
    """Objects of each picture: float32 [N, 5], class number and corners as fractions of the picture. sizes: of the pictures, where
    the annotations say so."""

    field: Field
    boxes: Mapping[str, np.ndarray]
    sizes: Mapping[str, Size]

    def contents(self, paths: list[str], cache: Path | None) -> list[Any]:
        return [self(path, self.sizes.get(path, (0, 0))).round(6).tolist() for path in paths]

    def __call__(self, path: str, size: Size) -> np.ndarray:
        if path in self.sizes and size not in (self.sizes[path], (0, 0)):
            raise ValueError("annotated for {}x{}, the picture has {}x{}".format(*self.sizes[path], *size))
        return self.boxes.get(path, np.empty((0, 5), dtype=np.float32))

    def joined(self, other: "Boxes") -> "Boxes":
        return replace(self, boxes={**self.boxes, **other.boxes}, sizes={**self.sizes, **other.sizes})


@dataclass(frozen=True)
class Maps:
    """A map of each picture, in a file of its own: pixels of a PNG, or a .npy.

    files: picture → file, relative to `root`. Of a class map the pixel's value is the class; of a file in colours, red + 256 green +
    65536 blue. segments: of panoptic maps, picture → value → class number. unlabelled: the value that means no class, which becomes the
    last one. threshold: half of the largest value of the file's type and more is 1, the rest 0. Of numbers (field kind "map"), 0 … that
    largest value are 0 … 1; floats stay.
    """

    field: Field
    root: Path
    files: Mapping[str, str]
    segments: Mapping[str, Mapping[int, int]] | None = None
    unlabelled: int | None = None
    threshold: bool = False

    def contents(self, paths: list[str], cache: Path | None) -> list[Any]:
        if missing := [path for path in paths if path not in self.files]:
            raise DataError(_without(missing, self.field.name, str(self.root)))
        found = Survey(self.root, cache, map_problem)([self.files[path] for path in paths])
        if bad := [(name, what.problem) for name, what in found.items() if what.problem is not None]:
            raise DataError(f"{self.root / bad[0][0]} cannot be read: {bad[0][1]}. {len(bad)} such maps; repair them.")
        shas = [found[self.files[path]].sha256 for path in paths]
        if self.segments is None:
            return shas
        return [[sha, sorted(self.segments[path].items())] for path, sha in zip(paths, shas, strict=True)]

    def __call__(self, path: str, size: Size) -> np.ndarray:
        file = self.root / self.files[path]
        value = read_map(file)
        if self.field.kind == "map":
            return _unit(value)
        if self.threshold:
            return (_unit(value) >= 0.5).astype(np.uint8)
        number_HW = value.astype(np.int64)  # a copy
        if self.segments is not None:
            number_HW = _named(number_HW, self.segments[path], file)
        assert self.field.values is not None
        if self.unlabelled is not None:
            number_HW[number_HW == self.unlabelled] = self.field.values - 1
        highest = int(number_HW.max())
        if highest >= self.field.values:
            raise DataError(
                f"{file}: the value {highest} occurs, and the field {self.field.name} has {self.field.values} classes, 0 … "
                f"{self.field.values - 1}. Say how many there are, or which value means no class."
            )
        return number_HW.astype(np.uint8 if self.field.values <= 256 else np.int32)

    def joined(self, other: "Maps") -> "Maps":
        both = None if self.segments is None else {**self.segments, **(other.segments or {})}
        return replace(self, files={**self.files, **other.files}, segments=both)


def read_map(source: Path | bytes) -> np.ndarray:
    """[H, W]: numbers of grey, palette, 1-bit and 16-bit pictures; red + 256 green + 65536 blue of coloured ones; or a .npy. Raises what
    damaged files raise (ValueError, OSError …)."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    if content.startswith(b"\x93NUMPY"):
        found = np.load(io.BytesIO(content), allow_pickle=False)
        if found.ndim != 2:
            raise ValueError(f"an array of {found.ndim} dimensions, not 2")
        return np.asarray(found)
    with Image.open(io.BytesIO(content)) as opened:
        if opened.mode in ("RGB", "RGBA"):
            rgb_HW3 = np.asarray(opened.convert("RGB"), dtype=np.int64)
            return rgb_HW3 @ np.array([1, 256, 65_536])
        return np.asarray(opened).copy()


def map_problem(content: bytes) -> str | None:
    """Why a map cannot be read, or None when it can."""
    try:
        read_map(content)
    except Exception as error:  # decoders raise many kinds on damaged files
        return str(error) or type(error).__name__
    return None


def _unit(value: np.ndarray) -> np.ndarray:
    if np.issubdtype(value.dtype, np.floating) or value.dtype == bool:
        return value.astype(np.float32)
    most = 255 if value.dtype == np.uint8 else 65_535
    return (value / most).astype(np.float32)


def _named(segment_HW: np.ndarray, numbers: Mapping[int, int], file: Path) -> np.ndarray:
    """Class numbers of a panoptic map; 0 is no segment."""
    known, where = np.unique(segment_HW, return_inverse=True)
    if strange := [int(s) for s in known if s and int(s) not in numbers]:
        raise DataError(f"{file}: the segment {strange[0]} is not in the annotations. Copy both again.")
    return np.array([numbers.get(int(s), 0) for s in known])[where].reshape(segment_HW.shape)


def _without(missing: list[str], what: str, where: str) -> str:
    shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"{len(missing)} pictures have no {what} in {where}: {shown}. Add them, or leave the field out."
