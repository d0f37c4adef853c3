"""Conditions to look at, beside the samples that were made from them.

Shape letters: H W pixels, K boxes, 3 RGB.
"""

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ldmlab.data.base import Sample
from ldmlab.data.batches import eight_bits
from ldmlab.data.fields import Field

CANVAS = 64  # pixels of a picture of boxes, which have no resolution of their own


def picture_of(sample: Sample, fields: Sequence[str], declared: Iterable[Field]) -> np.ndarray | None:
    """The first of `fields` that can be seen, uint8 [H, W, 3]; None where none can."""
    if "image" in fields:
        image_HW3: np.ndarray = eight_bits(torch.from_numpy(sample["image"])).numpy()
        return image_HW3
    for field in declared:
        if field.name in fields and field.kind in _PICTURES:
            return _PICTURES[field.kind](np.asarray(sample[field.name]))
    return None


def palette(n: int) -> np.ndarray:
    """n colours that differ, uint8 [n, 3]; the first, usually background, is black."""
    turns = [(k * 0.618034) % 1.0 for k in range(max(n - 1, 0))]  # steps of the golden angle
    colours = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(turn, 0.65, 0.95) for turn in turns)]
    return (np.array(colours[:n]) * 255).round().astype(np.uint8)


def _classes(map_HW: np.ndarray) -> np.ndarray:
    seen: np.ndarray = palette(int(map_HW.max()) + 1)[map_HW.astype(np.int64)]
    return seen


def _map(map_HWC: np.ndarray) -> np.ndarray:
    """Grey, from the map's lowest to its highest value; of several channels their mean."""
    map_HW = map_HWC.astype(np.float64) if map_HWC.ndim == 2 else map_HWC.mean(axis=2, dtype=np.float64)
    low, high = map_HW.min(), map_HW.max()
    grey_HW = ((map_HW - low) / (high - low if high > low else 1.0) * 255).round().astype(np.uint8)
    return np.repeat(grey_HW[:, :, None], 3, axis=2)


def _boxes(boxes_K5: np.ndarray) -> np.ndarray:
    """Outlines in the colour of their class, on white."""
    used_K5 = boxes_K5[boxes_K5[:, 0] >= 0]
    canvas_HW3 = np.full((CANVAS, CANVAS, 3), 255, np.uint8)
    colours = palette(2 + int(used_K5[:, 0].max(initial=0)))[1:]
    for kind, *corners in used_K5:
        x0, y0, x1, y1 = (round(float(corner) * (CANVAS - 1)) for corner in corners)
        canvas_HW3[[y0, y1], x0 : x1 + 1] = colours[int(kind)]
        canvas_HW3[y0 : y1 + 1, [x0, x1]] = colours[int(kind)]
    return canvas_HW3


def _picture(picture_HW3: np.ndarray) -> np.ndarray:
    return picture_HW3


_PICTURES = {"classes": _classes, "map": _map, "boxes": _boxes, "picture": _picture}
