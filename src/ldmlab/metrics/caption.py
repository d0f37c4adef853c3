"""Caption agreement: whether samples have the kind, colour, filling, size and background that their captions ask for.

The captions are those of `data=shapes` ("a large striped red star and … on a navy background"); a classifier that was trained on these
images (`eval=shapes`) says what it sees. The object that a caption names first is the largest, which the classifier looks at.

Shape letters: N images, K values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ldmlab.data.scene import BACKGROUNDS, COLOURS, FILLS, KINDS, SIZES, size_of
from ldmlab.metrics.extraction import load_features
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.intervals import Score, share_score
from ldmlab.metrics.metric import PART, Computed, Inputs, Metric

NULL = "null_samples"


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
class Caption(Metric):
    """Share of samples that have what their caption asks for, of each attribute; beside it the share when every sample had the commonest
    value of the captions, and the share of samples that were drawn with the empty prompt.
    """

    name: ClassVar[str] = "caption"
    label: ClassVar[str] = "caption agreement"
    needs: ClassVar[tuple[str, ...]] = (
        "text", *dict.fromkeys(f"answers:{attribute.field}" for attribute in ATTRIBUTES), f"stage:{NULL}",
    )  # fmt: skip
    better: ClassVar[Literal["lower", "higher"] | None] = "higher"
    unit: ClassVar[str] = "%"
    covers: ClassVar[str] = "the share over other samples with captions drawn in the same way"

    def compute(self, inputs: Inputs) -> Computed:
        if inputs.samples is None or inputs.answers is None or inputs.conditions is None:
            raise ValueError("caption agreement needs features, answers and captions")
        asked = [FORM.search(text) for text in captions(inputs)]
        known_M = np.array([i for i, found in enumerate(asked) if found is not None], dtype=np.int64)
        if not len(known_M):
            return Computed({}, ["no caption has the form of data=shapes, so no caption agreement"])
        null = load_features(Path(inputs.stages[NULL]) / "features.npz")
        scores: dict[str, Score] = {}
        for attribute in ATTRIBUTES:
            said = [found[attribute.name] or attribute.unsaid for found in asked if found is not None]
            asked_M = np.array([attribute.values.index(str(word)) for word in said], dtype=np.int64)
            scores |= self._scores(attribute, asked_M, known_M, null, inputs)
        left = len(asked) - len(known_M)
        return Computed(scores, [f"caption agreement leaves out {left} captions of another form"] if left else [])

    def _scores(
        self, attribute: Attribute, asked_M: np.ndarray, known_M: np.ndarray, null: FeatureSet, inputs: Inputs
    ) -> dict[str, Score]:
        """Of one attribute: the samples', the commonest value's, the null condition's."""
        assert inputs.samples is not None and inputs.answers is not None

        def share(said_M: np.ndarray, method: str) -> Score:
            return share_score(said_M == asked_M, inputs.bootstrap, inputs.seed, method)

        def seen(features: FeatureSet) -> np.ndarray:
            assert inputs.answers is not None
            return attribute.read(inputs.answers(features)[attribute.field])[known_M]

        commonest_M = np.full(len(asked_M), np.bincount(asked_M).argmax())
        key = f"{self.name}_{attribute.name}"
        return {
            key: share(seen(inputs.samples), "the classifier's answer against the caption's word"),
            f"{key}_commonest": share(commonest_M, "the captions' commonest word against each caption's"),
            f"{key}_null": share(seen(null), "the classifier's answer for samples of the empty prompt"),
        }

    def declarations(self) -> dict[str, dict[str, object]]:
        rows = {"commonest": "always the commonest", "null": "empty prompt"}
        found: dict[str, dict[str, object]] = {}
        for attribute in ATTRIBUTES:
            found |= beside(self, f"{self.name}_{attribute.name}", f"{attribute.name} as in the caption", rows)
        return found


def beside(metric: Metric, key: str, label: str, rows: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Declarations of a score and of the same number of other images, `key`_<row>: row → what those are."""
    own = {**metric.declaration(), "label": label}
    return {key: own} | {
        f"{key}_{row}": {**own, "label": f"{label}, {said}", "beside": said, "measure": key}
        for row, said in rows.items()
    }


def captions(inputs: Inputs) -> Sequence[str]:
    """The caption of each sample."""
    assert inputs.conditions is not None and inputs.samples is not None
    source, rows = inputs.conditions, range(len(inputs.samples))

    def read() -> list[str]:
        return [text for i in range(0, len(rows), PART) for text in source.batch(list(rows[i : i + PART]))["caption"]]

    return inputs.once("captions", read)
