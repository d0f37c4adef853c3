"""Caption agreement: whether samples have the kind, colour, filling, size and background that their captions ask for.

The captions are those of `data=shapes` ("a large striped red star and … on a navy background"); a classifier that was trained on these
images (`eval=shapes`) says what it sees. The object that a caption names first is the largest, which the classifier looks at.

Shape letters: N images, K values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from ldmlab.data.scene import BACKGROUNDS, COLOURS, FILLS, KINDS, SIZES, size_of
from ldmlab.metrics.beside import NULL, Measure, TaskMetric, size
from ldmlab.metrics.extraction import load_features
from ldmlab.metrics.intervals import Score, share_score
from ldmlab.metrics.metric import PART, Computed, Inputs, Metric


class Attribute(NamedTuple):
    """values: its words. field: of the data, as the classifier has learnt it. read: the classifier's answer → the number of a word.
    unsaid: the word where a caption says none."""

    name: str
    values: tuple[str, ...]
    field: str
    read: Callable[[np.ndarray], np.ndarray]
    unsaid: str | None = None


def _largest(logit_NK: np.ndarray) -> np.ndarray:
    found: np.ndarray = logit_NK.argmax(axis=1)
    return found


def _size(place_N3: np.ndarray) -> np.ndarray:
    return np.array([SIZES.index(size_of(side)) for side in place_N3[:, 2]], dtype=np.int64)


ATTRIBUTES = (
    Attribute("kind", KINDS, "label", _largest),
    Attribute("colour", tuple(COLOURS), "colour", _largest),
    Attribute("background", tuple(BACKGROUNDS), "background", _largest),
    Attribute("fill", FILLS, "fill", _largest, unsaid="plain"),
    Attribute("size", SIZES, "place", _size),
)
FORM = re.compile(
    rf"\ban? (?P<size>{'|'.join(SIZES)}) (?:(?P<fill>{'|'.join(FILLS)}) )?(?P<colour>{'|'.join(COLOURS)}) (?P<kind>{'|'.join(KINDS)})\b"
    rf".*\bon an? (?P<background>{'|'.join(BACKGROUNDS)}) background\b"
)


@dataclass(frozen=True)
class Caption(TaskMetric):
    """Share of samples that have what their caption asks for, of each attribute; beside it the share when every sample had the commonest
    value of the captions, and the share of samples that were drawn with the empty prompt.
    """

    name: ClassVar[str] = "caption"
    label: ClassVar[str] = "caption agreement"
    of_samples: ClassVar[tuple[str, ...]] = (
        "text", *dict.fromkeys(f"answers:{attribute.field}" for attribute in ATTRIBUTES),
    )  # fmt: skip
    measures: ClassVar[tuple[Measure, ...]] = tuple(
        Measure(attribute.name, f"{attribute.name} as in the caption", "higher", "%") for attribute in ATTRIBUTES
    )
    rows: ClassVar[dict[str, str]] = {"commonest": "always the commonest", "null": "empty prompt"}
    interval: ClassVar[str] = Metric.interval
    covers: ClassVar[str] = "the share over other samples with captions drawn in the same way"

    def compute(self, inputs: Inputs) -> Computed:
        asked, n = read_captions(inputs), size(inputs)
        if not asked:
            return Computed({}, ["no caption has the form of data=shapes, so no caption agreement"])
        left = n - len(asked)
        said = [f"caption agreement leaves out {left} captions of another form"] if left else []
        return replace(super().compute(inputs), warnings=said)

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        asked = read_captions(inputs)
        answers = self._answers(inputs, row)
        found = {}
        for attribute in ATTRIBUTES:
            words = [caption[attribute.name] or attribute.unsaid for caption in asked.values()]
            asked_M = np.array([attribute.values.index(str(word)) for word in words], dtype=np.int64)
            if answers is None:
                said_M, method = (
                    np.full_like(asked_M, np.bincount(asked_M).argmax()),
                    "the captions' commonest word against each caption's",
                )
            else:
                said_M, method = attribute.read(answers[attribute.field])[list(asked)], METHODS[row]
            found[attribute.name] = share_score(said_M == asked_M, inputs.bootstrap, inputs.seed, method)
        return found

    def images(self, inputs: Inputs, rows: list[int], row: str) -> Tensor | None:
        return None  # the sheet of samples shows them

    def _answers(self, inputs: Inputs, row: str) -> Mapping[str, np.ndarray] | None:
        """What the classifier says of a set's images; None of the commonest value, which has none."""
        if row == "commonest":
            return None
        if inputs.samples is None or inputs.answers is None:
            raise ValueError("caption agreement needs features and answers")
        return inputs.answers(load_features(Path(inputs.stages[NULL]) / "features.npz") if row else inputs.samples)


METHODS = {
    "": "the classifier's answer against the caption's word",
    "null": "the classifier's answer for samples of the empty prompt",
}


def read_captions(inputs: Inputs) -> dict[int, re.Match[str]]:
    """Row of a sample → its caption's words, of the captions that have the form of data=shapes."""

    def read() -> dict[int, re.Match[str]]:
        found = [FORM.search(text) for text in captions(inputs)]
        return {i: words for i, words in enumerate(found) if words is not None}

    return inputs.once("captions of shapes", read)


def captions(inputs: Inputs) -> Sequence[str]:
    """The caption of each sample."""
    assert inputs.conditions is not None and inputs.samples is not None
    source, rows = inputs.conditions, range(len(inputs.samples))

    def read() -> list[str]:
        return [text for i in range(0, len(rows), PART) for text in source.batch(list(rows[i : i + PART]))["caption"]]

    return inputs.once("captions", read)
