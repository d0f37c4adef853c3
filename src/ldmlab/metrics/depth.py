"""Whether samples are as deep as they were asked to be: rank correlation of a network's depths with the condition's.

Shape letters: B batch, N images, P pixels.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ldmlab.metrics.beside import Measure, TaskMetric, chw, common_sets, parts, size
from ldmlab.metrics.intervals import Score, mean_score
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.segmenter import load_segmenter

FIELD = "depth"


@dataclass(frozen=True)
class DepthCorrelation(TaskMetric):
    """Spearman's rank correlation over the pixels of an image, mean over images; beside it that of the null condition, of the
    mean of all condition maps, and of the real images, which is as far as the network itself goes."""

    name: ClassVar[str] = "depth_correlation"
    label: ClassVar[str] = "rank correlation of depth"
    measures: ClassVar[tuple[Measure, ...]] = (Measure("", "rank correlation of depth", "higher"),)
    rows: ClassVar[dict[str, str]] = {"null": "null condition", "mean": "mean depth map", "real": "real images"}
    of_samples: ClassVar[tuple[str, ...]] = ("pixels", "pairs", f"conditions:{FIELD}", "stage:segmenter")
    estimator: ClassVar[str] = "ranks of ties averaged; 0 for an image of one depth"

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        net = inputs.once("segmenter", lambda: load_segmenter(inputs.stages["segmenter"], inputs.device))
        found = []
        for rows in parts(size(inputs)):
            truth_BP = _flat(inputs, rows)
            if row == "mean":
                said_BP = np.broadcast_to(mean_map(inputs), truth_BP.shape)
            else:
                image_BCHW = chw(common_sets(inputs, row)(rows), inputs.device)
                said_BP = net(image_BCHW).depth_BHW.flatten(1).cpu().numpy()
            found.append(rank_correlations(said_BP, truth_BP))
        method = "Spearman over the pixels of an image, mean over images"
        return {"": mean_score(np.concatenate(found), inputs.bootstrap, inputs.seed, method)}


def rank_correlations(x_BP: np.ndarray, y_BP: np.ndarray) -> np.ndarray:
    """Spearman's rho of each pair of rows, float64 [B]; 0 where one of the two is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values_BP, axis=1) for values_BP in (x_BP, y_BP)]
    x_BP, y_BP = (rank_BP - rank_BP.mean(axis=1, keepdims=True) for rank_BP in ranks)
    spread_B = np.sqrt((x_BP**2).sum(axis=1) * (y_BP**2).sum(axis=1))
    rho_B: np.ndarray = np.divide((x_BP * y_BP).sum(axis=1), spread_B, out=np.zeros(len(spread_B)), where=spread_B > 0)
    return rho_B


def mean_map(inputs: Inputs) -> np.ndarray:
    """The mean depth of each pixel over all conditions of the samples, [P]."""
    return inputs.once("mean depth", lambda: sum(_flat(inputs, rows).sum(axis=0) for rows in parts(size(inputs))))


def _flat(inputs: Inputs, rows: list[int]) -> np.ndarray:
    assert inputs.conditions is not None
    flat_BP: np.ndarray = inputs.conditions.batch(rows)[FIELD].flatten(1).double().numpy()
    return flat_BP
