"""Whether the training image nearest to a sample is the one whose condition the sample was drawn for: what is learnt by heart.

For overfit runs, whose conditions are those of training images (data.overfit=true).

Shape letters: N samples, M reference images, P pixels' values.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.metrics.beside import Measure, TaskMetric, common_sets, parts, size, stored, truth
from ldmlab.metrics.intervals import Score, mean_score, share_score
from ldmlab.metrics.metric import Inputs, Read

SHUFFLED = "shuffled_samples"  # the stage that draws the same images for the conditions of each other


@dataclass(frozen=True)
class Nearest(TaskMetric):
    """Share of samples whose nearest reference image (mean square over pixels) is the condition's own. Beside it: samples that were
    drawn from the same noise for shuffled conditions and are compared with the unshuffled; the null condition's; and chance,
    1 / M."""

    name: ClassVar[str] = "nearest"
    label: ClassVar[str] = "nearest image is the condition's own"
    measures: ClassVar[tuple[Measure, ...]] = (Measure("", "nearest image is the condition's own", "higher"),)
    rows: ClassVar[dict[str, str]] = {
        "shuffled": "conditions shuffled", "null": "null condition", "chance": "chance",
    }  # fmt: skip
    of_samples: ClassVar[tuple[str, ...]] = ("features", "pixels", "pairs", f"stage:{SHUFFLED}")
    estimator: ClassVar[str] = "mean square over pixels, against all reference images"

    def images(self, inputs: Inputs, rows: list[int], row: str) -> Tensor | None:
        """One set, uint8 [B, H, W, C]; chance has none."""
        if row == "chance":
            return None
        return stored(inputs, SHUFFLED)(rows) if row == "shuffled" else common_sets(inputs, row)(rows)

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        real_MP = inputs.once((self.name, "reference"), lambda: _reference(inputs))
        own_N = inputs.once((self.name, "own"), lambda: _own(inputs, real_MP))
        if row == "chance":
            one_N = np.full(len(own_N), 1 / len(real_MP))
            return {"": mean_score(one_N, inputs.bootstrap, inputs.seed, "one reference image of all, at random")}
        hits_N = np.concatenate(
            [_hits(_flat(self.images(inputs, rows, row)), own_N[rows], real_MP) for rows in parts(size(inputs))]
        )
        return {"": share_score(hits_N, inputs.bootstrap, inputs.seed, self.estimator)}


def _flat(image_BHWC: Tensor | None) -> np.ndarray:
    """float32 [B, P] in 0 … 1."""
    assert image_BHWC is not None  # chance is scored without images
    return image_BHWC.numpy().reshape(len(image_BHWC), -1).astype(np.float32) / 255


def _reference(inputs: Inputs) -> np.ndarray:
    assert inputs.read_reference is not None and inputs.reference is not None  # ScoresStage always has them
    read: Read = inputs.read_reference
    return np.concatenate([_flat(read(rows)) for rows in parts(len(inputs.reference))])


def squares(one_NP: np.ndarray, other_MP: np.ndarray) -> np.ndarray:
    """Mean squared differences, [N, M]."""
    cross_NM = one_NP @ other_MP.T
    both_NM = np.square(one_NP).sum(axis=1)[:, None] + np.square(other_MP).sum(axis=1)[None, :] - 2 * cross_NM
    found: np.ndarray = both_NM / one_NP.shape[1]
    return found


def _own(inputs: Inputs, real_MP: np.ndarray) -> np.ndarray:
    """The reference image that is each condition's own, int64 [N]; ConfigError where one is not there."""
    found = []
    for rows in parts(size(inputs)):
        truth_BP = _flat(truth(inputs)(rows))
        own_B = squares(truth_BP, real_MP).argmin(axis=1)
        if not np.array_equal(truth_BP, real_MP[own_B]):
            raise ConfigError(
                "eval.metrics: 'nearest' looks for the picture of a sample's condition among the reference images, and it is not "
                "there. Use data.overfit=true, or leave 'nearest' out."
            )
        found.append(own_B)
    return np.concatenate(found)


def _hits(sample_NP: np.ndarray, own_N: np.ndarray, real_MP: np.ndarray) -> np.ndarray:
    """Whether no reference image is nearer than the own one, bool [N]; of several equal ones any may be the own one."""
    square_NM = squares(sample_NP, real_MP)
    nearest_N = square_NM.argmin(axis=1)
    found: np.ndarray = (nearest_N == own_N) | (real_MP[nearest_N] == real_MP[own_N]).all(axis=1)
    return found
