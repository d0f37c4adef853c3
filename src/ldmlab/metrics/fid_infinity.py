"""FID∞: the Fréchet distance at infinitely many images, estimated from few (Chong & Forsyth, arXiv 1911.07023).

FID at N samples and M reference images is too large by a/N + b/M + O(1/N²): its square root is concave and estimated means
scatter. Chong & Forsyth fit a line through FID at 15 subset sizes against 1/N and take its value at 1/N = 0, the reference
held fixed. Here both sides go to infinity, and no subset is drawn at random:

1. The coefficient of 1/N is computed, not fitted: the second-order term of the delta method. With S_b = L Lᵀ,
   M = Lᵀ S_a L = V diag(l) Vᵀ and y = Vᵀ Lᵀ (x - m_a) of the images x behind a, its share is

       a = tr S_a + ½ Σ_ij (E y_i² y_j² - δ_ij l_i²) / (√l_i √l_j (√l_i + √l_j))

   with the images' own fourth moments, so features need not be Gaussian; b is the same with the roles exchanged.
2. What is left falls as 1/N². One extrapolation removes it: (4 d(N, M) - d(N/2, M/2)) / 3, where d is the value less its
   first-order bias and d(N/2, M/2) the mean over two disjoint halves of both sets, after a fixed shuffle.

The interval is the linearised bootstrap of `frechet.influence` on both sides. Simulated with known Gaussians, exponential,
log-normal and rank-deficient features, D = 8 … 64 and N, M = 2.1 D … 60 D: the 95 % interval held the true distance in 94 to
100 % of replicates, at a distance of zero too; the interval of FID in 0 to 97 %. At N = 3 D the line of Chong & Forsyth had
seven times the bias and 1.3 times the spread.

It needs two halves of full rank: at least 2 (D + 1) images on both sides. The value may be slightly negative, as an unbiased
estimate of zero must be. Images are taken as independent.

Shape letters: N images, D features.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.metrics.frechet import NULL, Gaussian, factor, frechet_value, gaussian, influence
from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resampled_means
from ldmlab.metrics.metric import OPTIONS, Computed, Inputs, Least, Metric

SHUFFLE_SEED = 2020
ROWS = 8192  # images whose products are held at a time


@dataclass(frozen=True)
class FIDInfinity(Metric):
    """FID without the bias of few images: its interval covers the distance between the two distributions."""

    name: ClassVar[str] = "fid_infinity"
    label: ClassVar[str] = "FID∞"
    better: ClassVar[Literal["lower", "higher"] | None] = "lower"
    interval: ClassVar[str] = "of the distance at infinitely many images"
    covers: ClassVar[str] = (
        "the Fréchet distance between the distributions behind samples and reference, at infinitely many images of both"
    )
    estimator: ClassVar[str] = "second-order bias removed on both sides, 1/N² extrapolated from halves"

    def compute(self, inputs: Inputs) -> Computed:
        samples, reference = inputs.both()
        try:
            score = fid_infinity_score(
                samples.features, reference.features, inputs.bootstrap, inputs.seed, inputs.options
            )
        except ConfigError as error:
            if self.required:
                raise
            return Computed(warnings=[f"Not computed: {error}"])
        return Computed({self.name: score})

    def least(self, feature_dim: int | None = None) -> Least:
        fewest = 8 if feature_dim is None else 2 * (feature_dim + 1)
        return Least(fewest, fewest)


def fid_infinity_score(
    features: np.ndarray, reference: np.ndarray, bootstrap: int, seed: int, options: tuple[str, str] = OPTIONS
) -> Score:
    """FID∞ of features [N, D] against [M, D] with its interval. Raises ConfigError below 2 (D + 1) images on either side."""
    check_bootstrap(bootstrap)
    D = features.shape[1]
    for count, option in zip((len(features), len(reference)), options, strict=True):
        if count < 2 * (D + 1):
            raise ConfigError(
                f"{option}={count}: FID∞ with {D} features needs at least {2 * (D + 1)} images. Set {option}={2 * (D + 1)} "
                "or more, or leave 'fid_infinity' out of eval.metrics."
            )
    value = fid_infinity(features, reference)
    a, b = gaussian(features), gaussian(reference)
    replicates_R = value + resampled_means(influence(features, b), bootstrap, seed)
    replicates_R += resampled_means(influence(reference, a), bootstrap, seed, "reference")
    low, high = centred(value, replicates_R)
    method = f"float64, {FIDInfinity.estimator}; {interval_text(bootstrap)} of both sides, linearised"
    return Score(value, low, high, len(features), method, seed, tuple(map(float, replicates_R)))


def fid_infinity(features: np.ndarray, reference: np.ndarray) -> float:
    """The squared Fréchet distance of features [N, D] and [M, D] at infinitely many images of both."""
    x_ND, y_MD = _shuffled(features), _shuffled(reference)  # a fixed order of labels must not part the classes
    halves = [less_first_order(x_ND[i::2], y_MD[i::2]) for i in (0, 1)]
    return (4 * less_first_order(features, reference) - sum(halves) / 2) / 3


def _shuffled(features: np.ndarray) -> np.ndarray:
    return features[np.random.RandomState(SHUFFLE_SEED).permutation(len(features))]


def less_first_order(features: np.ndarray, reference: np.ndarray) -> float:
    """FID less its bias of order 1/N and 1/M."""
    a, b = gaussian(features), gaussian(reference)
    return frechet_value(a, b) - first_order_bias(features, a, b) - first_order_bias(reference, b, a)


def first_order_bias(features: np.ndarray, a: Gaussian, b: Gaussian) -> float:
    """How much FID is too large because `a` was estimated from these features [N, D]: the a/N of the file's head."""
    root_DD, _ = factor(b.covariance)
    values_D, vectors_DD = np.linalg.eigh(root_DD.T @ a.covariance @ root_DD)
    kept_D = values_D > max(values_D[-1] * NULL, 0.0)
    l_D = values_D[kept_D]
    along_DD = root_DD @ vectors_DD[:, kept_D]
    fourth_DD = np.zeros((len(l_D), len(l_D)))
    for start in range(0, a.n, ROWS):
        square_nD = np.square((features[start : start + ROWS].astype(np.float64) - a.mean) @ along_DD)
        fourth_DD += square_nD.T @ square_nD
    fourth_DD = fourth_DD / a.n - np.diag(np.square(l_D))
    s_D = np.sqrt(l_D)
    curvature_DD = 1 / (np.outer(s_D, s_D) * (s_D[:, None] + s_D))
    return float(np.trace(a.covariance) + 0.5 * (curvature_DD * fourth_DD).sum()) / a.n
