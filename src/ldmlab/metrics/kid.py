"""Kernel inception distance (Bińkowski et al. 2018, eq. 4): unbiased MMD² with k(x, y) = (x·y / D + 1)³.

The value is the mean over 100 random subsets of min(1000, n, m) images, the same draw and the same numbers as
torch-fidelity 0.4's `kid_features_to_metric` (a test holds them equal). It is unbiased: slightly negative values are
right for equal distributions.

Shape letters: N generated images, M reference images, D features, R replicates.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resamples
from ldmlab.metrics.metric import OPTIONS, Computed, Inputs, Least, Metric
from ldmlab.ranges import NumpySeed, Range

SUBSETS = 100
SUBSET_SIZE = 1000
SUBSET_SEED = 2020  # torch-fidelity's
REFERENCE_CAP = 10_000  # reference images that enter the interval's cross term; the value itself may draw on all
FEWEST_IMAGES = (
    10  # of the samples, for an interval: resamples of fewer are often copies of one image, and have no pairs
)
BLOCK = 1 << 24  # kernel values held at a time: 64 MB


@dataclass(frozen=True)
class KID(Metric):
    """Kernel inception distance: unbiased at any N, so it may be slightly negative."""

    name: ClassVar[str] = "kid"
    label: ClassVar[str] = "KID"
    better: ClassVar[Literal["lower", "higher"] | None] = "lower"
    unit: ClassVar[str] = "×10³"
    interval: ClassVar[str] = "over samples (unbiased at any N)"
    covers: ClassVar[str] = "the squared distance of the samples' distribution to this reference set"
    estimator: ClassVar[str] = "cubic polynomial kernel"

    subsets: Annotated[int, Range(at_least=1, at_most=10_000)] = SUBSETS
    subset_size: Annotated[int, Range(at_least=2, at_most=100_000)] = SUBSET_SIZE
    subset_seed: NumpySeed = SUBSET_SEED

    def compute(self, inputs: Inputs) -> Computed:
        samples, reference = inputs.both()
        score = kid_score(
            samples.features, reference.features, inputs.bootstrap, inputs.seed, self.subsets, self.subset_size,
            self.subset_seed, inputs.options,
        )  # fmt: skip
        return Computed({self.name: score})

    def least(self, feature_dim: int | None = None) -> Least:
        return Least(FEWEST_IMAGES, 2)


def subset_size(n: int, m: int, most: int = SUBSET_SIZE, options: tuple[str, str] = OPTIONS) -> int:
    """Images per subset. Raises ConfigError when there are too few for an unbiased estimate."""
    for count, option in zip((n, m), options, strict=True):
        if count < 2:
            raise ConfigError(f"{option}={count}: KID needs at least 2 images.")
    return min(most, n, m)


def kid(
    features: np.ndarray,
    reference: np.ndarray,
    subsets: int = SUBSETS,
    most: int = SUBSET_SIZE,
    subset_seed: int = SUBSET_SEED,
) -> float:
    """Mean MMD² over random subsets of generated [N, D] and reference [M, D] features."""
    size = subset_size(len(features), len(reference), most)
    rng = np.random.RandomState(subset_seed)
    total = 0.0
    for _ in range(subsets):
        x = features[rng.choice(len(features), size, replace=False)]
        y = reference[rng.choice(len(reference), size, replace=False)]
        total += (_off_diagonal_sum(x) + _off_diagonal_sum(y)) / (size * (size - 1))
        total -= 2 * _kernel(x, y).sum(dtype=np.float64) / size**2
    return total / subsets


def kid_score(
    features: np.ndarray,
    reference: np.ndarray,
    bootstrap: int,
    seed: int,
    subsets: int = SUBSETS,
    most: int = SUBSET_SIZE,
    subset_seed: int = SUBSET_SEED,
    options: tuple[str, str] = OPTIONS,
) -> Score:
    """KID with its interval; the reference is held fixed. Raises ConfigError for fewer than `FEWEST_IMAGES` samples."""
    check_bootstrap(bootstrap)
    size = subset_size(len(features), len(reference), most, options)
    if len(features) < FEWEST_IMAGES:
        raise ConfigError(
            f"{options[0]}={len(features)}: an interval of KID needs at least {FEWEST_IMAGES} images, because resamples of "
            f"fewer hold too few different ones. Set {options[0]}={FEWEST_IMAGES} or leave 'kid' out of eval.metrics."
        )
    value = kid(features, reference, subsets, most, subset_seed)
    held = reference
    if len(reference) > REFERENCE_CAP:
        held = reference[np.random.RandomState(subset_seed).permutation(len(reference))[:REFERENCE_CAP]]
    replicates_R = kid_replicates(features, held, resamples(len(features), bootstrap, seed))
    low, high = centred(value, replicates_R)
    method = (
        f"polynomial kernel, {subsets} subsets of {size}; {interval_text(bootstrap)} (full-sample MMD²), "
        f"{len(held)} reference images held fixed"
    )
    return Score(value, low, high, len(features), method, seed, tuple(map(float, replicates_R)))


def kid_replicates(features: np.ndarray, reference: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Full-sample unbiased MMD² of each resample less the reference's own constant term, [R].

    Pairs of copies of one image are left out, as pairs of an image with itself are in the estimator. Rows of the kernel
    matrix are made in blocks, so memory does not grow with N².
    """
    R, N = counts_RN.shape
    w_NR = counts_RN.T.astype(np.float32)
    within_R, across_R = np.zeros(R), np.zeros(R)
    rows = max(1, BLOCK // max(N, len(reference)))
    for start in range(0, N, rows):
        block = slice(start, start + rows)
        k_bN = _kernel(features[block], features)
        k_bN[np.arange(len(k_bN)), np.arange(start, start + len(k_bN))] = 0
        within_R += np.einsum("br,br->r", w_NR[block], k_bN @ w_NR, dtype=np.float64)
        across_R += _kernel(features[block], reference).mean(axis=1, dtype=np.float64) @ counts_RN.T[block]
    pairs_R = N * N - np.square(counts_RN).sum(axis=1)
    return within_R / pairs_R - 2 * across_R / N


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k = x @ y.T
    k /= x.shape[1]
    k += 1
    return k * k * k


def _off_diagonal_sum(x: np.ndarray) -> float:
    k = _kernel(x, x)
    return float(k.sum(dtype=np.float64) - np.trace(k, dtype=np.float64))
