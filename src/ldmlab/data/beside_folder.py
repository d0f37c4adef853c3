"""Captions, maps and masks as files of their own beside the pictures of a folder.

pictures/cat/01.jpg   captions=txt: pictures/cat/01.txt   segmentation=labels: labels/cat/01.png
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmlab.data import fields as declare
from ldmlab.data.beside import Beside, Captions, Maps
from ldmlab.data.fields import Field
from ldmlab.errors import ConfigError, DataError

TXT = "txt"
SUFFIXES = (".png", ".npy")  # of maps: jpg and webp change class numbers


@dataclass(frozen=True)
class Neighbours:
    """What stands beside the pictures of a folder; see `Folder`."""

    captions: str | None = None
    segmentation: str | None = None
    depth: str | None = None
    mask: str | None = None
    classes: int | None = None
    unlabelled: int | None = None

    def __post_init__(self) -> None:
        if self.segmentation is not None and self.classes is None:
            raise ConfigError(
                "data.segmentation needs to know how many classes its maps have. Set data.classes=182 or as many."
            )

    def without(self, root: Path, paths: list[str]) -> list[str]:
        """Pictures without the maps that lie below `root` too."""
        own = [folder.rstrip("/") + "/" for folder in (self.segmentation, self.depth, self.mask) if folder is not None]
        return [path for path in paths if not path.startswith(tuple(own))]

    def read(self, root: Path, paths: list[str]) -> tuple[Beside, ...]:
        """The fields that were asked for. Raises DataError for a file or folder that is not there."""
        found: list[Beside] = [] if self.captions is None else [captions_of(root, self.captions, paths)]
        if self.segmentation is not None:
            values = (self.classes or 0) + (self.unlabelled is not None)
            found.append(
                maps_of(root, self.segmentation, paths, declare.class_map("segmentation", values), self.unlabelled)
            )
        if self.depth is not None:
            found.append(maps_of(root, self.depth, paths, declare.float_map("depth")))
        if self.mask is not None:
            found.append(maps_of(root, self.mask, paths, declare.class_map("mask", 2), threshold=True))
        return tuple(found)


def captions_of(root: Path, captions: str, paths: list[str]) -> Captions:
    """captions: "txt", a text file with the name of each picture; or a json below `root`: {picture: text}, a picture being its path or its
    file's name, or COCO's captions. Of several texts the first counts."""
    if captions == TXT:
        files = {path: (root / path).with_suffix(".txt") for path in paths}
        texts = {path: _first(file) for path, file in files.items() if file.is_file()}
        return Captions(declare.text("caption"), texts, f"{root} (.txt beside the picture)")
    file = root / captions
    try:
        table = json.loads(file.read_text())
        known = _coco(table) if "annotations" in table else {name: _one(text) for name, text in table.items()}
    except OSError as error:
        raise DataError(
            f"data.captions: {file} cannot be read: {error.strerror}. Give txt, or a json below data.root."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"data.captions: {file} is no json of captions ({{picture: text}}, or COCO's): {error}."
        ) from error
    texts = {path: known[name] for path in paths for name in (path, Path(path).name) if name in known}
    return Captions(declare.text("caption"), texts, str(file))


def _first(file: Path) -> str:
    return next((line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()), "")


def _one(text: Any) -> str:
    return " ".join((text if isinstance(text, str) else text[0]).split())


def _coco(table: dict[str, Any]) -> dict[str, str]:
    name = {image["id"]: image["file_name"] for image in table["images"]}
    texts: dict[str, str] = {}
    for one in sorted(table["annotations"], key=lambda one: int(one["id"])):
        texts.setdefault(name[one["image_id"]], _one(one["caption"]))
    return texts


def maps_of(
    root: Path, folder: str, paths: list[str], field: Field, unlabelled: int | None = None, threshold: bool = False
) -> Maps:
    """A file of the same path as the picture's, below `folder`, which is relative to `root` or anywhere."""
    if not (root / folder).is_dir():
        raise DataError(f"data.{field.name}: {root / folder} is no folder. Give that of the maps.")
    files: dict[str, str] = {}
    for path in paths:
        names = (f"{folder.rstrip('/')}/{Path(path).with_suffix(suffix).as_posix()}" for suffix in SUFFIXES)
        if (name := next((name for name in names if (root / name).is_file()), None)) is not None:
            files[path] = name
    return Maps(field, root, files, unlabelled=unlabelled, threshold=threshold)
