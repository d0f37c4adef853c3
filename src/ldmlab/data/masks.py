"""Masks of holes, drawn by position: the strokes and boxes of LaMa (Suvorov et al. 2109.07161), which the paper's masks are from.

thick, medium, thin   chains of strokes, or (thick, medium) boxes; the settings of its files random_*_512.yaml, lengths in 512ths of
                      the side. Masks that hide more than half of the image are drawn again, as there (docs/paper.md#masks).
box                   one rectangle of 10 to 35 % of the area.

Shape letters: B batch, H W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ldmlab.randomness import seed_of

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

MaskKind = Literal["thick", "medium", "thin", "box"]
KINDS: tuple[MaskKind, ...] = get_args(MaskKind)
MOST = 0.5  # of the image, hidden
TRIES = 50  # until a mask hides something, and at most `MOST`; then a box is taken


@dataclass(frozen=True)
class Strokes:
    """How chains of strokes and boxes are drawn; numbers as LaMa's files have them, for 512 pixels a side."""

    times: tuple[int, int]  # chains, both ends included
    width: int  # of a stroke: 5 to 4 + width
    length: int  # 10 to 9 + length
    boxes: tuple[int, int] | None  # how many; None: strokes alone
    box: tuple[int, int] = (0, 0)  # sides, the second excluded
    margin: int = 0  # of boxes from the border


STROKES = {
    "thick": Strokes((1, 6), 250, 450, (1, 4), (30, 301), 10),
    "medium": Strokes((4, 11), 100, 200, (1, 5), (30, 151), 0),
    "thin": Strokes((4, 71), 20, 100, None),
}
BOXES = 0.3 / 1.3  # how often boxes are drawn instead of strokes: weight 0.3 beside 1
ANGLES = 4  # a stroke turns by 0.01 + one of 0 … 3, in radians
AREA = (0.10, 0.35)  # of the kind box


def masks(kinds: Sequence[MaskKind], position_B: Tensor, side: int) -> Tensor:
    """float32 [B, 1, side, side] on the CPU: 1 in the hole. Each position has a kind and a mask of its own."""
    return torch.stack([torch.from_numpy(mask_at(kinds, int(p), side)) for p in position_B.tolist()])[:, None]


def mask_at(kinds: Sequence[MaskKind], position: int, side: int) -> np.ndarray:
    """float32 [side, side] of one position."""
    rng = np.random.Generator(np.random.PCG64(seed_of("mask", position)))
    kind = kinds[int(rng.integers(len(kinds)))]
    for _ in range(TRIES if kind != "box" else 0):
        found = _stroked(STROKES[kind], side, rng)
        if 0 < found.mean() <= MOST:
            return found
    return _box(side, rng)


def _box(side: int, rng: np.random.Generator) -> np.ndarray:
    """One rectangle; both its sides from √10 % to √35 % of the image's."""
    low, high = (math.sqrt(share) * side for share in AREA)
    height, width = (max(1, round(rng.uniform(low, high))) for _ in range(2))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    mask = np.zeros((side, side), np.float32)
    mask[top : top + height, left : left + width] = 1
    return mask


def _stroked(how: Strokes, side: int, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageDraw

    canvas, unit = Image.new("L", (side, side)), side / 512
    pen = ImageDraw.Draw(canvas)
    if how.boxes is not None and rng.random() < BOXES:
        for _ in range(int(rng.integers(how.boxes[0], how.boxes[1] + 1))):
            width, height = (int(rng.integers(*how.box)) for _ in range(2))
            left, top = (int(rng.integers(how.margin, 513 - how.margin - extent)) for extent in (width, height))
            corners = [left * unit, top * unit, (left + width) * unit - 1, (top + height) * unit - 1]
            pen.rectangle([corners[0], corners[1], max(corners[2], corners[0]), max(corners[3], corners[1])], fill=1)
    else:
        for i in range(int(rng.integers(how.times[0], how.times[1] + 1))):
            _chain(pen, how, i, unit, rng)
    return np.asarray(canvas, dtype=np.float32)


def _chain(pen: "ImageDraw", how: Strokes, i: int, unit: float, rng: np.random.Generator) -> None:
    """1 to 5 strokes with round ends, each from where the one before ended."""
    x, y = (float(rng.integers(512)) for _ in range(2))
    for _ in range(1 + int(rng.integers(5))):
        angle = 0.01 + int(rng.integers(ANGLES))
        angle = 2 * math.pi - angle if i % 2 == 0 else angle
        length, width = 10 + int(rng.integers(how.length)), 5 + int(rng.integers(how.width))
        to_x, to_y = (min(max(at + length * f(angle), 0.0), 512.0) for at, f in ((x, math.sin), (y, math.cos)))
        pen.line([x * unit, y * unit, to_x * unit, to_y * unit], fill=1, width=max(1, round(width * unit)))
        r = width * unit / 2
        for cx, cy in ((x * unit, y * unit), (to_x * unit, to_y * unit)) if r > 1 else ():
            pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=1)
        x, y = to_x, to_y
