"""Trained on one data set, scored on another: the paper's first stages (OpenImages, ImageNet) and its text model (LAION, COCO)."""

from pathlib import Path
from typing import Annotated, Any

from ldmlab.data.base import ImageDataset, Split
from ldmlab.ranges import Given, Part, Pixels


def pair(
    train: Annotated[Any, Part()],
    val: Annotated[Any, Part()],
    resolution: Pixels,
    flip: bool = True,
    split: Annotated[Split, Given] = "train",
    cache: Annotated[Path | None, Given] = None,
) -> ImageDataset:
    """The split "train" of the data set `train`, or the split "val" ("test") of the data set `val`; both are partial data sets.

    resolution, flip: of both, in the place of their own.
    """
    chosen = train if split == "train" else val
    return chosen(split=split, cache=cache, resolution=resolution, flip=flip)
