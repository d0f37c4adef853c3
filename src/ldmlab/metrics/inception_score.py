"""Inception score (Salimans et al. 2016): exp E_x KL(p(y|x) || p(y)), mean over 10 splits.

The same numbers as torch-fidelity 0.4's `isc_features_to_metric` (a test holds them equal), without its import of
four seconds.

Shape letters: N images, K classes, R replicates.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resamples
from ldmlab.metrics.metric import Computed, Inputs, Least, Metric
from ldmlab.ranges import NumpySeed, Range

SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's: a fixed order, or the value would depend on the draw (3.75 to 3.78 at N = 1000)


@dataclass(frozen=True)
class InceptionScore(Metric):
    """Inception score at this N (Salimans et al. 2016): the mean over `splits` parts in a fixed shuffled order."""

    name: ClassVar[str] = "is"
    label: ClassVar[str] = "IS"
    needs: ClassVar[tuple[str, ...]] = ("features", "logits")
    better: ClassVar[Literal["lower", "higher"] | None] = "higher"

    splits: Annotated[int, Range(at_least=1, at_most=1000)] = SPLITS
    shuffle_seed: NumpySeed = SHUFFLE_SEED

    def compute(self, inputs: Inputs) -> Computed:
        if inputs.samples is None or inputs.samples.logits is None:
            raise ConfigError(
                "eval.metrics: 'is' needs class logits, which this eval.extractor does not give; leave it out."
            )
        score = is_score(inputs.samples.logits, inputs.bootstrap, inputs.seed, self.splits, self.shuffle_seed)
        return Computed({self.name: score})

    def least(self, feature_dim: int | None = None) -> Least:
        return Least(self.splits)


def inception_score(logits: np.ndarray, splits: int = SPLITS, shuffle_seed: int = SHUFFLE_SEED) -> float:
    """Inception score of logits [N, K]. Raises ConfigError naming eval.samples for fewer images than splits."""
    parts = _splits(logits, splits, shuffle_seed)
    return float(np.mean([_split_score(p, h, np.ones((1, len(p))))[0] for p, h in parts]))


def is_score(
    logits: np.ndarray, bootstrap: int, seed: int, splits: int = SPLITS, shuffle_seed: int = SHUFFLE_SEED
) -> Score:
    """Inception score with its interval; images are resampled within each split."""
    check_bootstrap(bootstrap)
    per_split = [
        _split_score(p, h, resamples(len(p), bootstrap, seed, f"split {i}"))
        for i, (p, h) in enumerate(_splits(logits, splits, shuffle_seed))
    ]
    replicates_R = np.mean(per_split, axis=0)
    value = inception_score(logits, splits, shuffle_seed)
    low, high = centred(value, replicates_R, lowest=1.0, highest=float(logits.shape[1]))
    method = f"mean of {splits} splits, shuffle seed {shuffle_seed}; {interval_text(bootstrap)} within splits"
    return Score(value, low, high, len(logits), method, seed, tuple(map(float, replicates_R)))


def _splits(logits_NK: np.ndarray, splits: int, shuffle_seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each split: p(y|x) [n, K] and sum_y p log p [n]."""
    N = len(logits_NK)
    if splits > N:
        raise ConfigError(f"eval.samples={N}: the inception score needs at least {splits} images, one per split.")
    x_NK = logits_NK[np.random.RandomState(shuffle_seed).permutation(N)].astype(np.float64)
    x_NK -= x_NK.max(axis=1, keepdims=True)
    log_p_NK = x_NK - np.log(np.exp(x_NK).sum(axis=1, keepdims=True))
    p_NK = np.exp(log_p_NK)
    h_N = (p_NK * log_p_NK).sum(axis=1)
    edges = [i * N // splits for i in range(splits + 1)]
    return [(p_NK[a:b], h_N[a:b]) for a, b in itertools.pairwise(edges)]


def _split_score(p_nK: np.ndarray, h_n: np.ndarray, counts_Rn: np.ndarray) -> np.ndarray:
    """exp(mean_x sum_y p log p - sum_y q log q) with q the mean of p, for each resample."""
    q_RK = counts_Rn @ p_nK / len(p_nK)
    log_q_RK = np.log(q_RK, out=np.zeros_like(q_RK), where=q_RK > 0)
    return np.exp(counts_Rn @ h_n / len(h_n) - (q_RK * log_q_RK).sum(axis=1))
