"""Metrics of a task (semantic maps, super-resolution, …): samples beside the null condition and trivial answers to the same conditions.

A set of images is scored by all of a metric's measures; row "" is the samples. Score names are <metric>[_<measure>][_<row>].

Shape letters: B batch, N images, H W pixels, C colours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmlab.data.parcel import on_device
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.metric import Computed, Inputs, Metric, Read
from ldmlab.store.files import read_array

AT_ONCE = 128  # images looked at at a time
SHOWN = 10  # images of each set that are kept to look at
SETS = "sets.npz"  # of a scores stage: the first images of each set, by its name
NULL = "null_samples"  # the stage that draws the same images without their condition


class Measure(NamedTuple):
    """One number of a set of images."""

    key: str  # "" where the metric has one measure
    label: str
    better: Literal["lower", "higher"]
    unit: str = ""


@dataclass(frozen=True)
class TaskMetric(Metric):
    """Base of the tasks' metrics.

    null_condition: the null condition's samples are scored too; they are drawn for this alone and cost as much as the samples.
    measures: what each set is scored by. rows: key → name of the sets beside the samples.
    """

    measures: ClassVar[tuple[Measure, ...]]
    rows: ClassVar[dict[str, str]]
    interval: ClassVar[str] = "over images"
    covers: ClassVar[str] = "the same over other held-out conditions and noise"
    of_samples: ClassVar[tuple[str, ...]] = ()  # needs beside the null samples

    null_condition: bool = True

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.of_samples, *([f"stage:{NULL}"] if self.null_condition else []))

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        """Measure → score of one set."""
        raise NotImplementedError

    def images(self, inputs: Inputs, rows: list[int], row: str) -> Tensor | None:
        """Images of one set, uint8 [B, H, W, C]; None for a set that has none."""
        return common_sets(inputs, row)(rows) if row in ("", "null", "real") else None

    def pictures(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """The first images of each set by its name, and the true ones."""
        rows = list(range(min(SHOWN, size(inputs))))
        found = {
            self.rows.get(row, "samples"): self.images(inputs, rows, row) for row in self.chosen_rows() if row != "real"
        }
        named = {name: image.numpy() for name, image in found.items() if image is not None}
        return named | {"true image": truth(inputs)(rows).numpy()}

    def chosen_rows(self) -> list[str]:
        """The rows that its settings ask for, the samples ("") first."""
        return ["", *(row for row in self.rows if row != "null" or self.null_condition)]

    def compute(self, inputs: Inputs) -> Computed:
        found = {row: self.score(inputs, row) for row in self.chosen_rows()}
        scores = {self.named(key, row): score for row, own in found.items() for key, score in own.items()}
        return Computed(scores, pictures=self.pictures(inputs) if inputs.pairs is not None else {})

    def named(self, measure: str, row: str) -> str:
        return "_".join(part for part in (self.name, measure, row) if part)

    def declarations(self) -> dict[str, dict[str, object]]:
        common = self.declaration()
        return {
            self.named(m.key, row): common
            | {"label": m.label, "unit": m.unit, "better": m.better}
            | ({"beside": self.rows[row], "measure": self.named(m.key, "")} if row else {})
            for row in self.chosen_rows()
            for m in self.all_measures()
        }

    def all_measures(self) -> tuple[Measure, ...]:
        return self.measures


def size(inputs: Inputs) -> int:
    """How many samples there are."""
    assert inputs.samples is not None  # ScoresStage always has them
    return len(inputs.samples)


def parts(n: int) -> Iterator[list[int]]:
    for begin in range(0, n, AT_ONCE):
        yield list(range(begin, min(begin + AT_ONCE, n)))


def stored(inputs: Inputs, stage: str) -> Read:
    """The images that a stage drew for the conditions of the samples: rows → uint8 [B, H, W, C]."""
    images_NHWC = inputs.once(("images", stage), lambda: read_array(inputs.stages[stage] / "images.npy"))
    return lambda rows: torch.from_numpy(np.asarray(images_NHWC[rows]))


def truth(inputs: Inputs) -> Read:
    """The true image of each condition: rows → uint8 [B, H, W, C]."""
    assert inputs.pairs is not None  # as `needs` says
    pairs = inputs.pairs
    return lambda rows: pairs(rows)[1]


def common_sets(inputs: Inputs, row: str) -> Read:
    """The samples, the null condition's and the real images."""
    assert inputs.read_samples is not None
    return inputs.read_samples if not row else stored(inputs, NULL) if row == "null" else truth(inputs)


def features_of(inputs: Inputs, read: Read, key: object) -> FeatureSet:
    """Features of a set by the extractor of the scores, once a pass."""
    assert inputs.features_of is not None
    extract = inputs.features_of
    return inputs.once(("features", key), lambda: extract(read(rows) for rows in parts(size(inputs))))


def chw(image_BHWC: Tensor, device: Any = "cpu") -> Tensor:
    """uint8 [B, H, W, C] → [B, C, H, W] on a device."""
    return on_device(image_BHWC.permute(0, 3, 1, 2).contiguous(), device)


def as_float(image_BHWC: Tensor, device: Any = "cpu") -> Tensor:
    """uint8 [B, H, W, C] → float32 [B, C, H, W] in [-1, 1]."""
    return chw(image_BHWC, device).float() / 127.5 - 1
