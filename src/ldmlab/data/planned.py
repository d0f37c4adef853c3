"""Stands in for a data set whose folder is not on this machine, by its published counts: enough to plan a run, nothing to train on."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ldmlab.data import fields as kinds
from ldmlab.data.base import Sample, Split, digest
from ldmlab.errors import DataError
from ldmlab.ranges import Choices, Given, Items, Pixels, Range

Name = Annotated[str, Choices(("label", "caption", "boxes", "segmentation"))]
Count = Annotated[int, Range(at_least=0, at_most=10**10)]


class Planned:
    """Has an experiment's counts, fields and classes, and no pictures.

    train, val:  images of the splits.
    fields:      beside the image.
    classes:     of labels, boxes and class maps.

    Raises DataError for every question that a picture would answer.
    """

    def __init__(
        self,
        resolution: Annotated[Pixels, Given],
        flip: Annotated[bool, Given],
        train: Count,
        val: Count,
        fields: Annotated[list[Name], Items(distinct=True)] = [],  # noqa: B006 - read only
        classes: Count = 0,
        split: Annotated[Split, Given] = "train",
        cache: Annotated[Path | None, Given] = None,
    ):
        self.resolution, self.flip, self.split = resolution, flip, split
        self.images = {"train": train, "val": val, "test": val}[split]
        made = {
            "label": lambda: kinds.label(classes), "caption": lambda: kinds.text("caption"),
            "boxes": lambda: kinds.boxes("boxes", classes), "segmentation": lambda: kinds.class_map("segmentation", classes),
        }  # fmt: skip
        self.declared = tuple(made[name]() for name in fields)
        self.fields: tuple[str, ...] = tuple(fields)
        self.class_names = tuple(f"class {k}" for k in range(classes)) if "label" in fields else ()

    def __len__(self) -> int:
        return self.images

    def _refuse(self) -> DataError:
        return DataError("these data are planned with and not here: give data.root=… the folder that holds them.")

    def __getitem__(self, i: int) -> Sample:
        raise self._refuse()

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        raise self._refuse()

    def labels(self) -> np.ndarray:
        raise self._refuse()

    def split_record(self) -> dict[str, object]:
        return {"planned": True, "split": self.split, "images": len(self)}

    def fingerprint(self) -> str:
        """Of the facts above: no real data set has it."""
        facts: dict[str, Any] = {"planned": self.images, "split": self.split, "resolution": self.resolution}
        return digest(facts | {"fields": list(self.fields), "values": [field.values for field in self.declared]})
