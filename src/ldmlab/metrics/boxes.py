"""Box agreement: whether samples show the objects of their layout, in their places.

A segmenter that was trained on images of the data says which class each pixel of a sample shows. An asked box is found as well as the
best of its class: the boxes around connected pixels of that class, and the one around all of them (an object may be cut in two by one
in front). `boxes_place` asks the same of objects of any class: whether something stands there.

Shape letters: N images, K boxes, H W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ldmlab.metrics.beside import Measure, TaskMetric, common_sets, size
from ldmlab.metrics.intervals import Score, mean_score
from ldmlab.metrics.metric import PART, Computed, Inputs, Metric
from ldmlab.metrics.segmenter import Segmenter, load_segmenter

AT_ONCE = 250  # images that the segmenter looks at
ANY = -1  # the class of all objects together


@dataclass(frozen=True)
class Boxes(TaskMetric):
    """Mean intersection over union of asked and found boxes, over an image's boxes and over images; what is not seen counts 0.
    Beside it the same when every sample had one object, of the commonest class in the mean box, and of samples of the empty layout.
    """

    name: ClassVar[str] = "boxes"
    label: ClassVar[str] = "box agreement"
    of_samples: ClassVar[tuple[str, ...]] = ("pixels", "conditions:boxes", "stage:segmenter")
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("", label, "higher", "%"),
        Measure("place", f"{label} of any class", "higher", "%"),
    )
    rows: ClassVar[dict[str, str]] = {"commonest": "always the commonest", "null": "empty layout"}
    interval: ClassVar[str] = Metric.interval
    covers: ClassVar[str] = "the mean over other samples with layouts drawn in the same way"

    def compute(self, inputs: Inputs) -> Computed:
        if not layouts(inputs):
            return Computed({}, ["no layout has an object, so no box agreement"])
        return super().compute(inputs)

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        asked = layouts(inputs)
        found = self._found(inputs, row, asked)

        def score(wanted: Iterable[np.ndarray]) -> Score:
            values_M = np.array([agreement(*pair) for pair in zip(wanted, found, strict=True)])
            return mean_score(values_M, inputs.bootstrap, inputs.seed, METHODS[row])

        any_class = [np.concatenate([np.full_like(b_K5[:, :1], ANY), b_K5[:, 1:]], axis=1) for b_K5 in asked.values()]
        return {"": score(asked.values()), "place": score(any_class)}

    def images(self, inputs: Inputs, rows: list[int], row: str) -> torch.Tensor | None:
        return None  # the sheet of samples shows them

    def _found(self, inputs: Inputs, row: str, asked: dict[int, np.ndarray]) -> list[dict[int, np.ndarray]]:
        """Of each image of a set: class → its boxes."""
        if row == "commonest":
            every = np.concatenate(list(asked.values()))
            kind, box_14 = int(np.bincount(every[:, 0].astype(np.int64)).argmax()), every[None, :, 1:].mean(axis=1)
            return [{kind: box_14, ANY: box_14}] * len(asked)
        net, read, rows = load_segmenter(Path(inputs.stages["segmenter"])), common_sets(inputs, row), list(asked)
        parts = [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]
        return [found for part in parts for found in boxes_seen(net, read(part))]


METHODS = {
    "": "best box, by the segmenter",
    "commonest": "the mean box, of the commonest class",
    "null": "samples of the empty layout, by the segmenter",
}


def layouts(inputs: Inputs) -> dict[int, np.ndarray]:
    """Row of a sample → the boxes that it was asked to show, [K, 5]: class, x0, y0, x1, y1; of the rows that ask for any."""
    if inputs.conditions is None:
        raise ValueError("box agreement needs layouts")
    source, n = inputs.conditions, size(inputs)

    def read() -> dict[int, np.ndarray]:
        parts = [source.batch(list(range(i, min(i + PART, n))))["boxes"] for i in range(0, n, PART)]
        asked_NK5 = np.concatenate([np.asarray(part) for part in parts])
        asked = {i: boxes_K5[boxes_K5[:, 0] >= 0] for i, boxes_K5 in enumerate(asked_NK5)}
        return {i: boxes_K5 for i, boxes_K5 in asked.items() if len(boxes_K5)}

    return inputs.once("layouts", read)


def boxes_seen(net: Segmenter, image_BHWC: torch.Tensor) -> list[dict[int, np.ndarray]]:
    """Of each image (uint8): class → the boxes in which it is seen, float [M, 4], x0, y0, x1, y1 as fractions of the side."""
    class_BHW = net.classes_of(image_BHWC.permute(0, 3, 1, 2)).numpy()
    return [boxes_of(class_HW) for class_HW in class_BHW]


def boxes_of(class_HW: np.ndarray) -> dict[int, np.ndarray]:
    """Of a class map whose 0 is background and 1 + k class k: class k, and `ANY`, → boxes around connected pixels (8 neighbours), then
    the one around all of them."""
    masks = {int(number) - 1: class_HW == number for number in np.unique(class_HW[class_HW > 0])}
    return {kind: _around(mask_HW) for kind, mask_HW in {**masks, ANY: class_HW > 0}.items() if mask_HW.any()}


def _around(mask_HW: np.ndarray) -> np.ndarray:
    """[M, 4]: boxes of the connected pieces, and of the whole."""
    from scipy.ndimage import find_objects, label

    pieces_HW, _ = label(mask_HW, structure=np.ones((3, 3)))
    h, w = mask_HW.shape
    spans = [*find_objects(pieces_HW), *find_objects(mask_HW.astype(np.int64))]
    return np.array([[x.start / w, y.start / h, x.stop / w, y.stop / h] for y, x in spans])


def agreement(asked_K5: np.ndarray, found: dict[int, np.ndarray]) -> float:
    """Mean over the asked boxes [K, 5] of the best intersection over union with a found box of the class; 0 without one."""
    best = [iou(box[1:], found[int(box[0])]).max() if int(box[0]) in found else 0.0 for box in asked_K5]
    return float(np.mean(best))


def iou(box_4: np.ndarray, others_M4: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of others, [M]; x0, y0, x1, y1."""
    low_M2, high_M2 = np.maximum(box_4[:2], others_M4[:, :2]), np.minimum(box_4[2:], others_M4[:, 2:])
    inside_M = np.clip(high_M2 - low_M2, 0, None).prod(axis=1)
    area_M = (others_M4[:, 2:] - others_M4[:, :2]).prod(axis=1) + (box_4[2:] - box_4[:2]).prod() - inside_M
    return np.divide(inside_M, area_M, out=np.zeros_like(inside_M), where=area_M > 0)
