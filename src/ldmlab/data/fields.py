"""What stands beside an image, and what happens to it when the image is mirrored or cropped.

Each field of a data set declares both, so that no augmentation can part an image from its condition.

Shape letters: B batch, H W pixels, C channels, K boxes.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from ldmlab.errors import ConfigError

Kind = Literal["label", "vector", "text", "boxes", "classes", "map", "picture"]
"""label: integer [B]. vector: float32 [B, D]. text: a list of B strings. boxes: float32 [B, K, 5], class number and x0, y0, x1, y1
as fractions of the side, -1 in unused rows. classes: integer [B, H, W], a class number per pixel. map: float [B, H, W] or
[B, H, W, C]. picture: uint8 [B, H, W, 3]."""


@dataclass(frozen=True)
class Crop:
    """A square cut out of an image, in fractions of its side: left and top edge, and how long its side is (0, 1]."""

    left: float
    top: float
    side: float


Mirror = Callable[[Any], Any]
"""A batch of one field → what it is when every image is mirrored left-right; same type and shape."""
Cropped = Callable[[Any, Crop], Any]
"""A batch of one field, a crop → what it is for the cropped images; maps get smaller."""


@dataclass(frozen=True)
class Field:
    """One field of a data set.

    kind: its form in a batch (`Kind`). mirror, crop: what it becomes with its image; None: it has no right value then,
    and the augmentation is refused. values: how many numbers a label, a class map or a box's class can be, how many numbers a
    vector has; None for others. rows: K of boxes that are read from files; None for others.
    """

    name: str
    kind: Kind
    mirror: Mirror | None
    crop: Cropped | None
    values: int | None = None
    rows: int | None = None


def unchanged(value: Any, crop: Crop | None = None) -> Any:
    """What does not depend on where things are: a label; a text without sides."""
    return value


def mirrored_map(map_BHWC: Tensor) -> Tensor:
    """Maps and pictures, [B, H, W] or [B, H, W, C]: columns in reverse."""
    return map_BHWC.flip(2)


def cropped_map(map_BHWC: Tensor, crop: Crop) -> Tensor:
    """Maps and pictures, [B, H, W] or [B, H, W, C], at their own resolution; ValueError between two of its pixels."""
    h, w = map_BHWC.shape[1:3]
    edges = [crop.top * h, (crop.top + crop.side) * h, crop.left * w, (crop.left + crop.side) * w]
    whole = [round(edge) for edge in edges]
    if max(abs(edge - near) for edge, near in zip(edges, whole, strict=True)) > 1e-4:
        raise ValueError(f"{crop} cuts through the pixels of a map of {h} x {w}")
    top, bottom, left, right = whole
    return map_BHWC[:, top:bottom, left:right]


def mirrored_boxes(boxes_BK5: Tensor) -> Tensor:
    """x0, x1 → 1 - x1, 1 - x0; unused rows stay -1."""
    kind, x0, y0, x1, y1 = boxes_BK5.unbind(-1)
    return _where_used(boxes_BK5, torch.stack([kind, 1 - x1, y0, 1 - x0, y1], dim=-1))


def cropped_boxes(boxes_BK5: Tensor, crop: Crop) -> Tensor:
    """The visible parts as fractions of the crop's side; boxes outside become unused rows (-1)."""
    kind, x0, y0, x1, y1 = boxes_BK5.unbind(-1)
    x0, x1 = (((x - crop.left) / crop.side).clamp(0, 1) for x in (x0, x1))
    y0, y1 = (((y - crop.top) / crop.side).clamp(0, 1) for y in (y0, y1))
    moved_BK5 = torch.stack([kind, x0, y0, x1, y1], dim=-1)
    inside_BK = (x1 > x0) & (y1 > y0)
    return _where_used(boxes_BK5, torch.where(inside_BK[..., None], moved_BK5, -torch.ones_like(moved_BK5)))


def mirrored_place(place_B3: Tensor) -> Tensor:
    """x → 1 - x."""
    return torch.stack([1 - place_B3[:, 0], place_B3[:, 1], place_B3[:, 2]], dim=1)


def cropped_place(place_B3: Tensor, crop: Crop) -> Tensor:
    """Of the same object, as fractions of the crop's side."""
    x, y, side = place_B3.unbind(1)
    return torch.stack([(x - crop.left) / crop.side, (y - crop.top) / crop.side, side / crop.side], dim=1)


def _where_used(boxes_BK5: Tensor, changed_BK5: Tensor) -> Tensor:
    return torch.where(boxes_BK5[..., :1] < 0, boxes_BK5, changed_BK5)


_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b(left|right)(?=most\b|wards?\b|\b)", re.IGNORECASE)


def swapped_sides(texts: list[str]) -> list[str]:
    """Texts with "left" and "right" exchanged (leftmost, rightward, left-hand … too), in their case.

    It takes every "left" and "right" for a side. Texts that use them otherwise ("two are left", "the right answer") need a
    field with mirror=None.
    """
    return [_SIDE.sub(_other_side, text) for text in texts]


def _other_side(found: re.Match[str]) -> str:
    word, other = found[0], _SIDES[found[0].lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def label(classes: int, name: str = "label") -> Field:
    """A class number per image."""
    return Field(name, "label", unchanged, unchanged, classes)


def place(name: str) -> Field:
    """Where one object is and how large: x, y and side, [B, 3], as fractions of the image's side."""
    return Field(name, "vector", mirrored_place, cropped_place, 3)


def text(name: str) -> Field:
    """A sentence per image; a mirror image exchanges left and right in it, a crop does not change it."""
    return Field(name, "text", swapped_sides, unchanged)


def boxes(name: str, classes: int, rows: int | None = None) -> Field:
    """Boxes with class numbers (`Kind`)."""
    return Field(name, "boxes", mirrored_boxes, cropped_boxes, classes, rows)


def class_map(name: str, classes: int) -> Field:
    """A class number per pixel: segmentations and masks."""
    return Field(name, "classes", mirrored_map, cropped_map, classes)


def float_map(name: str) -> Field:
    """Numbers per pixel: depth."""
    return Field(name, "map", mirrored_map, cropped_map)


def picture(name: str) -> Field:
    """Another image of the same view: low resolution."""
    return Field(name, "picture", mirrored_map, cropped_map)


def as_stored(field: Field) -> dict[str, Any]:
    """What a manifest says of a field, for `restored`."""
    return {"name": field.name, "kind": field.kind, "values": field.values, "rows": field.rows}


def restored(stored: dict[str, Any]) -> Field:
    """The field of a manifest, with what a mirror image and a crop do to its kind. Raises KeyError or ValueError for no such field."""
    name, kind, values = str(stored["name"]), stored["kind"], stored["values"]
    if kind == "text":
        return text(name)
    if kind == "boxes":
        return boxes(name, int(values), int(stored["rows"]))
    if kind == "classes":
        return class_map(name, int(values))
    if kind == "map":
        return float_map(name)
    raise ValueError(f"the field {name!r} is of the kind {kind!r}, which shards cannot hold")


def check_mirrors(fields: Iterable[str], declared: Iterable[Field]) -> None:
    """ConfigError unless each field of a data set says what it becomes in a mirror image."""
    known = {field.name: field for field in declared}
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"data.flip=true mirrors images, and the field {name!r} of this data set does not declare what a mirror "
                "image does to it. Declare it (`declared`, ldmlab.data.fields), or set data.flip=false."
            )
        if known[name].mirror is None:
            raise ConfigError(
                f"data.flip=true mirrors images, and the field {name!r} of this data set has no right value for a mirror "
                "image. Set data.flip=false."
            )


def mirror_some(batch: dict[str, Any], declared: Iterable[Field], mirror_B: Tensor) -> dict[str, Any]:
    """The fields of a batch, each example where `mirror_B` (bool, on the CPU) is true as in a mirror image."""
    return {
        field.name: _chosen(batch[field.name], field.mirror(batch[field.name]), mirror_B)
        for field in declared
        if field.name in batch and field.mirror is not None
    }


def _chosen(plain: Any, mirrored: Any, mirror_B: Tensor) -> Any:
    if isinstance(plain, Tensor):
        chosen = mirror_B.to(plain.device, non_blocking=True).view(-1, *[1] * (plain.dim() - 1))
        return torch.where(chosen, mirrored, plain)
    return [m if flip else p for p, m, flip in zip(plain, mirrored, mirror_B.tolist(), strict=True)]


def as_channels(map_BHWC: Tensor) -> Tensor:
    """[B, H, W] or [B, H, W, C] → [B, C, H, W]."""
    return map_BHWC[:, None] if map_BHWC.dim() == 3 else rearrange(map_BHWC, "b h w c -> b c h w")
