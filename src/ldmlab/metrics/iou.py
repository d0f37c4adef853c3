"""Mean intersection over union of class maps, over a set of images (Everingham et al., PASCAL VOC).

Per class the intersections and the unions are summed over all images before they are divided; the mean is over the classes
that occur in the truth.

Shape letters: B batch, N images, H W pixels, K classes, R replicates.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resamples


@dataclass
class Confusion:
    """Counts of pixels of each image, collected over batches: `update`, then `miou`, `score`."""

    classes: int
    parts: list[np.ndarray] = field(default_factory=list)  # [B, 3, K]: both, said, true

    def update(self, said_BHW: Tensor, truth_BHW: Tensor) -> None:
        """Class numbers 0 … K-1 of two batches, integer [B, H, W]."""
        if said_BHW.shape != truth_BHW.shape:
            raise ValueError(f"class maps of {tuple(said_BHW.shape)} and {tuple(truth_BHW.shape)}")
        said_BKP, truth_BKP = (
            torch.nn.functional.one_hot(map_BHW.long().flatten(1), self.classes).transpose(1, 2).bool()
            for map_BHW in (said_BHW, truth_BHW)
        )
        counts = [part.sum(dim=2) for part in (said_BKP & truth_BKP, said_BKP, truth_BKP)]
        self.parts.append(torch.stack(counts, dim=1).cpu().numpy().astype(np.float64))

    @property
    def counts_N3K(self) -> np.ndarray:
        return np.concatenate(self.parts)

    def miou(self) -> float:
        return float(miou(self.counts_N3K.sum(axis=0)[None])[0])

    def pixels_right(self) -> float:
        both_K, _, true_K = self.counts_N3K.sum(axis=0)
        return float(both_K.sum() / true_K.sum())

    def score(self, bootstrap: int, seed: int, method: str) -> Score:
        """mIoU with its 95 % interval over resamples of the images."""
        check_bootstrap(bootstrap)
        counts_N3K = self.counts_N3K
        n = len(counts_N3K)
        weights_RN = resamples(n, bootstrap, seed).astype(np.float64)
        replicates_R = miou((weights_RN @ counts_N3K.reshape(n, -1)).reshape(bootstrap, 3, self.classes))
        value = self.miou()
        low, high = centred(value, replicates_R, 0.0, 1.0)
        return Score(
            value, low, high, n, f"{method}; {interval_text(bootstrap)}", seed, tuple(map(float, replicates_R))
        )


def miou(counts_R3K: np.ndarray) -> np.ndarray:
    """[R] of counts [R, 3, K]: pixels where both say k, where one says k, where it is k. NaN where nothing is true at all."""
    both_RK, said_RK, true_RK = counts_R3K[:, 0], counts_R3K[:, 1], counts_R3K[:, 2]
    union_RK = said_RK + true_RK - both_RK
    occurs_RK = true_RK > 0
    shares_RK = np.divide(both_RK, union_RK, out=np.zeros_like(both_RK), where=occurs_RK)
    mean_R: np.ndarray = shares_RK.sum(axis=1) / occurs_RK.sum(axis=1)
    return mean_R
