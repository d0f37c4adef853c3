"""The square that is cut out of a picture, and what stands beside the picture as it is seen in that square.

Shape letters: H W pixels, K boxes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ldmlab.data.fields import Field
from ldmlab.data.transforms import placed

SMALLEST = (
    1e-5  # of the square's area: boxes of which less is seen are left out (min_object_area of the published layouts)
)
ASPECT = 0.02  # how far the proportions of a map may be from those of its picture


@dataclass(frozen=True)
class View:
    """The centre crop of a picture of width x height, `resolution` pixels a side (`transforms.center_crop`)."""

    width: int
    height: int
    resolution: int

    def boxes(self, boxes_N5: np.ndarray, rows: int) -> np.ndarray:
        """float32 [rows, 5]: the visible parts of boxes given as fractions of the whole picture, as fractions of the square; the
        `rows` largest, in their order; unused rows are -1."""
        w, h, left, top = placed(self.width, self.height, self.resolution)
        size, edge = np.array([w, h, w, h]), np.array([left, top, left, top])
        corner_N4 = np.clip((boxes_N5[:, 1:] * size - edge) / self.resolution, 0, 1)
        side_N2 = corner_N4[:, 2:] - corner_N4[:, :2]
        area_N = np.where((side_N2 > 0).all(axis=1), side_N2.prod(axis=1), 0.0)
        seen = np.flatnonzero(area_N > SMALLEST)
        seen = np.sort(seen[np.argsort(-area_N[seen], kind="stable")[:rows]])
        found = np.full((rows, 5), -1, dtype=np.float32)
        found[: len(seen)] = np.concatenate([boxes_N5[seen, :1], corner_N4[seen]], axis=1)
        return found

    def map(self, map_HW: np.ndarray) -> np.ndarray:
        """[resolution, resolution] of a map of the whole picture, of the same type: whole numbers by the nearest pixel, floats by
        an antialiased bilinear filter. ValueError where the map has other proportions than the picture."""
        if abs(map_HW.shape[1] * self.height / (map_HW.shape[0] * self.width) - 1) > ASPECT:
            raise ValueError(
                f"a map of {map_HW.shape[1]}x{map_HW.shape[0]} for a picture of {self.width}x{self.height}"
            )
        w, h, left, top = placed(self.width, self.height, self.resolution)
        whole = np.issubdtype(map_HW.dtype, np.integer)
        layer = Image.fromarray(map_HW.astype(np.int32 if whole else np.float32))
        resized = layer.resize((w, h), Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR)
        square_HW = np.asarray(resized)[top : top + self.resolution, left : left + self.resolution]
        return np.ascontiguousarray(square_HW.astype(map_HW.dtype))

    def of(self, field: Field, whole: Any) -> Any:
        """The value of a field in the square, from its value for the whole picture: boxes float [N, 5] with corners as fractions,
        maps [H, W]; labels, vectors and texts stay."""
        if field.kind == "boxes":
            assert field.rows is not None
            return self.boxes(whole, field.rows)
        return self.map(whole) if field.kind in ("classes", "map") else whole
