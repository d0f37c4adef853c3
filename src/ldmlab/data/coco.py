"""COCO as it is downloaded: pictures with captions, boxes, and semantic or panoptic maps in COCO's json and png files.

https://cocodataset.org/#format-data. Shape letters: N boxes.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from ldmlab.data import fields as declare
from ldmlab.data.base import SPLITS, Split
from ldmlab.data.beside import Beside, Boxes, Captions, Maps
from ldmlab.data.listing import Listing, check_fractions, divided, learnt_by_heart
from ldmlab.data.pictures import Layout, PictureFiles
from ldmlab.errors import ConfigError, DataError
from ldmlab.ranges import ClassCount, Depth, FewObjects, File, Items, PixelValue, Share

FieldName = Literal["boxes", "caption", "segmentation"]
Json = dict[str, Any]


@dataclass(frozen=True)
class CocoLayout(Layout):
    """Pictures and annotations in COCO's layout; `{split}` in a path is train, val or test.

    images:       folder of the pictures.
    instances:    json with boxes, for the field boxes: classes are its categories in the order of their ids.
    captions:     json with captions, for the field caption: the first of each picture.
    segmentation: folder of png files named as the pictures, for the field segmentation. With a json of the same name beside the folder
                  it is panoptic: classes are 0 (none) and 1 + category; else a pixel's value is its class.
    fields:       which of the three a sample has.
    classes:      values of a semantic map; null: 1 + the largest category id of `instances`.
    unlabelled:   the pixel value that means no class; it becomes the last class, number `classes`. null: there is none.
    objects:      boxes of a sample at most, the largest ones. min_objects: pictures with fewer boxes are left out.
    val_fraction,
    test_fraction: where `images` has no {split}: chosen by a hash of each picture's path.
    overfit:      val and test are the training pictures themselves: to see what is learnt by heart.
    """

    images: File = "{split}2017"
    instances: File | None = "annotations/instances_{split}2017.json"
    captions: File | None = "annotations/captions_{split}2017.json"
    segmentation: File | None = "annotations/panoptic_{split}2017"
    fields: Annotated[Sequence[FieldName], Items(distinct=True)] = ("boxes",)
    classes: ClassCount | None = None
    unlabelled: PixelValue | None = None
    objects: Depth = 30
    min_objects: FewObjects = 0
    val_fraction: Share = 0.1
    test_fraction: Share = 0.0
    overfit: bool = False

    def listing(self, split: Split | None = None) -> Listing:
        check_fractions(self.val_fraction, self.test_fraction)
        if self.overfit:
            return learnt_by_heart(self._listing(("train",), 0.0, 0.0))
        there = tuple(one for one in SPLITS if (self.place / self.images.format(split=one)).is_dir())
        return self._listing(there if split is None else (split,), self.val_fraction, self.test_fraction)

    def _listing(self, splits: tuple[Split, ...], val_fraction: float, test_fraction: float) -> Listing:
        """The pictures of these splits; without {split} in `images`, of all, divided by fractions."""
        if not self.place.is_dir():
            raise DataError(
                f"data.root={self.place}: no such folder. Give the folder that holds pictures and annotations."
            )
        by_split = "{split}" in self.images
        tables = {split: _Table(self, split) for split in (splits if by_split else ("train",))}
        paths: dict[Split, list[str]] = {split: [] for split in SPLITS}
        rule = f"the folders {self.images}"
        if by_split:
            paths |= {split: table.paths for split, table in tables.items()}
        else:
            paths, rule = divided(tables["train"].paths, val_fraction, test_fraction)
        beside = tuple(_joined([table.beside(name) for table in tables.values()]) for name in self.fields)
        return Listing(self.place, paths, None, (), rule, by_split, beside)

    def path(self, option: str, split: Split) -> Path:
        """Of the file or folder that an option names."""
        value = getattr(self, option)
        if value is None:
            raise ConfigError(f"data.{option}=null, and data.fields or data.min_objects asks for it. Give its path.")
        return self.place / value.format(split=split)


class _Table:
    """The annotations of one json per kind: of one split, or of all pictures."""

    def __init__(self, files: CocoLayout, split: Split):
        self.files, self.split = files, split
        self._read: dict[str, Json] = {}  # COCO's instances take half a minute to read
        self.folder = files.images.format(split=split)
        first = next(
            name for name in ("instances", "captions") if name == "captions" or getattr(files, name) is not None
        )
        self.images: dict[int, Any] = {image["id"]: image for image in self._json(first)["images"]}
        self.boxes: dict[int, np.ndarray] = self._rows() if "boxes" in files.fields or files.min_objects else {}
        kept = [n for n in self.images if (len(self.boxes[n]) if n in self.boxes else 0) >= files.min_objects]
        self.path_of: dict[int, str] = {n: f"{self.folder}/{self.images[n]['file_name']}" for n in kept}
        self.paths = sorted(self.path_of.values())
        if lost := [path for path in self.paths if not (files.place / path).is_file()]:
            raise DataError(
                f"{files.path(first, split)} names {len(lost)} pictures that are not there, the first is {files.place / lost[0]}. "
                "Copy them, or give data.images."
            )

    def _json(self, option: str) -> Json:
        if option not in self._read:
            self._read[option] = read_json(self.files.path(option, self.split), f"data.{option}")
        return self._read[option]

    def beside(self, name: FieldName) -> Beside:
        if name == "boxes":
            rows = {self.path_of[n]: boxes_N5 for n, boxes_N5 in self.boxes.items() if n in self.path_of}
            sizes = {
                path: (int(self.images[n]["width"]), int(self.images[n]["height"])) for n, path in self.path_of.items()
            }
            return Boxes(declare.boxes("boxes", len(self._categories()), self.files.objects), rows, sizes)
        return self._captions() if name == "caption" else self._maps()

    def _categories(self) -> list[int]:
        return sorted(int(category["id"]) for category in self._json("instances")["categories"])

    def _rows(self) -> dict[int, np.ndarray]:
        """float32 [N, 5] of each picture: category's place among all, corners as fractions."""
        number = {category: k for k, category in enumerate(self._categories())}
        rows: dict[int, list[list[float]]] = defaultdict(list)
        for one in self._json("instances")["annotations"]:
            image = self.images.get(one["image_id"])
            if image is None:
                continue
            (x, y, w, h), width, height = one["bbox"], image["width"], image["height"]
            corners = [x / width, y / height, (x + w) / width, (y + h) / height]
            rows[one["image_id"]].append([number[one["category_id"]], *corners])
        return {n: np.array(own, dtype=np.float32) for n, own in rows.items()}

    def _captions(self) -> Captions:
        """The first of each picture, in the order of their ids."""
        texts: dict[str, str] = {}
        for one in sorted(self._json("captions")["annotations"], key=lambda one: int(one["id"])):
            if one["image_id"] in self.path_of:
                texts.setdefault(self.path_of[one["image_id"]], " ".join(one["caption"].split()))
        return Captions(declare.text("caption"), texts, str(self.files.path("captions", self.split)))

    def _maps(self) -> Maps:
        folder = self.files.path("segmentation", self.split)
        inside = folder.relative_to(self.files.place) if folder.is_relative_to(self.files.place) else folder
        panoptic = folder.with_name(folder.name + ".json")
        if panoptic.exists():
            return self._panoptic(read_json(panoptic, "data.segmentation"), inside)
        if not folder.is_dir():
            raise DataError(
                f"data.segmentation: {folder} is no folder. Give that of the png files, or fewer data.fields."
            )
        known = {name.stem for name in folder.glob("*.png")}
        files = {path: f"{inside}/{stem}.png" for path in self.paths if (stem := Path(path).stem) in known}
        classes = self.files.classes or 1 + max(self._categories())
        values = classes + (self.files.unlabelled is not None)
        return Maps(
            declare.class_map("segmentation", values), self.files.place, files, unlabelled=self.files.unlabelled
        )

    def _panoptic(self, table: Json, inside: Path) -> Maps:
        """Class 0 is no segment; category k in the order of their ids is 1 + k."""
        number = {category: 1 + k for k, category in enumerate(sorted(int(c["id"]) for c in table["categories"]))}
        files: dict[str, str] = {}
        segments: dict[str, dict[int, int]] = {}
        for one in table["annotations"]:
            if (path := self.path_of.get(one["image_id"])) is not None:
                files[path] = f"{inside}/{one['file_name']}"
                segments[path] = {int(s["id"]): number[int(s["category_id"])] for s in one["segments_info"]}
        return Maps(declare.class_map("segmentation", 1 + len(number)), self.files.place, files, segments)


def _joined(parts: list[Any]) -> Beside:
    """One field of several splits; their vocabularies are those of the first."""
    first = parts[0]
    for other in parts[1:]:
        if other.field != first.field:
            raise DataError(
                f"the field {first.field.name} has other classes in two splits: {first.field.values} and {other.field.values}."
            )
        first = first.joined(other)
    return first


def read_json(file: Path, option: str) -> Json:
    """DataError naming `option` where there is no such file or no json in it."""
    try:
        found: Json = json.loads(file.read_text())
    except OSError as error:
        raise DataError(f"{option}: {file} cannot be read: {error.strerror}. Give its path below data.root.") from error
    except ValueError as error:
        raise DataError(f"{option}: {file} is not whole json: {error}. Copy it again.") from error
    return found


class Coco(PictureFiles):
    """COCO; options: `CocoLayout`."""

    layout = CocoLayout
