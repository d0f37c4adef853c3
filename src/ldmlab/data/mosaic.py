"""Examples side by side on one larger canvas: conditions of pictures that are sampled larger than trained.

Each example keeps the size that it was trained at, so that what is in it is as large as in training.

Shape letters: H W pixels of the canvas, h w of an example's own map, K boxes.
"""

from typing import Any

import numpy as np

from ldmlab.data.base import ImageDataset, Sample, digest


class Mosaic:
    """A data set of canvases of `height` x `width` pixels, each filled row by row with consecutive examples of `dataset` and cut at
    the right and at the bottom.

    Images and maps are joined, at their own resolution; boxes are moved, as fractions of the canvas. Labels, texts and vectors
    are those of the first example. Raises IndexError for a canvas that is not there.
    """

    flip = False

    def __init__(self, dataset: ImageDataset, height: int, width: int):
        self.dataset, self.height, self.width = dataset, height, width
        self.resolution: int = dataset.resolution
        self.rows, self.columns = -(-height // self.resolution), -(-width // self.resolution)
        self.fields, self.declared, self.class_names = dataset.fields, dataset.declared, dataset.class_names
        self._kind = {"image": "picture", **{field.name: field.kind for field in self.declared}}

    def __len__(self) -> int:
        return -(-len(self.dataset) // (self.rows * self.columns))

    def __getitem__(self, i: int) -> Sample:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        return [self._canvas(self.dataset.__getitems__(self.examples(i))) for i in indices]

    def examples(self, i: int) -> list[int]:
        """Which examples stand on canvas i; after the last comes the first again."""
        if not 0 <= i < len(self):
            raise IndexError(f"there are canvases 0 … {len(self) - 1}; asked for {i}")
        cells = self.rows * self.columns
        return [(i * cells + cell) % len(self.dataset) for cell in range(cells)]

    def labels(self) -> np.ndarray:
        """int64 [N], of the first example of each canvas."""
        found: np.ndarray = self.dataset.labels()[[self.examples(i)[0] for i in range(len(self))]]
        return found

    def split_record(self) -> dict[str, object]:
        return {**self.dataset.split_record(), "canvas": [self.height, self.width]}

    def fingerprint(self) -> str:
        return digest({"mosaic_of": self.dataset.fingerprint(), "height": self.height, "width": self.width})

    def _canvas(self, samples: list[Sample]) -> Sample:
        return {name: self._joined(self._kind[name], [sample[name] for sample in samples]) for name in samples[0]}

    def _joined(self, kind: str, values: list[Any]) -> Any:
        if kind in ("classes", "map", "picture"):
            return self._map(values)
        if kind == "boxes":
            return np.concatenate([self._moved(boxes, cell) for cell, boxes in enumerate(values)])
        return values[0]

    def _map(self, values: list[np.ndarray]) -> np.ndarray:
        rows = [np.concatenate(values[r * self.columns : (r + 1) * self.columns], axis=1) for r in range(self.rows)]
        side = len(values[0])  # of an example's map, which may be coarser than its image
        canvas = np.concatenate(rows)[: self.height * side // self.resolution, : self.width * side // self.resolution]
        return np.ascontiguousarray(canvas)

    def _moved(self, boxes_K5: np.ndarray, cell: int) -> np.ndarray:
        """Of the canvas, cut where it ends; what lies outside becomes an unused row."""
        top, left = divmod(cell, self.columns)
        moved = boxes_K5.copy()
        moved[:, [1, 3]] = ((boxes_K5[:, [1, 3]] + left) * self.resolution / self.width).clip(0, 1)
        moved[:, [2, 4]] = ((boxes_K5[:, [2, 4]] + top) * self.resolution / self.height).clip(0, 1)
        used = (boxes_K5[:, 0] >= 0) & (moved[:, 3] > moved[:, 1]) & (moved[:, 4] > moved[:, 2])
        return np.where(used[:, None], moved, -1).astype(boxes_K5.dtype)
