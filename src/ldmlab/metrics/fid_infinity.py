"""FID∞: the Fréchet distance at infinitely many samples, estimated from few (Chong & Forsyth, arXiv 1911.07023).

FID of N samples against fixed reference moments is too large by a/N + O(1/N²): the square root of an estimated covariance is too
small on average, and the estimated mean scatters. Chong & Forsyth fit a line through FID at 15 random subset sizes against
1/N and take its value at 1/N = 0. Here no subset size is drawn at random:

1. The coefficient of 1/N is computed, not fitted: the second-order term of the delta method. With S_b = L Lᵀ,
   Lᵀ S_a L = V diag(l) Vᵀ and y = Vᵀ Lᵀ (x - m_a) it is

       a = tr S_a + ½ Σ_ij var(y_i y_j) / (√l_i √l_j (√l_i + √l_j))

   with the variances that the images themselves show, so features need not be Gaussian.
2. What is left falls as 1/N². One extrapolation removes it: with d(N) the value less a/N, and d(n) the mean of d over two
   disjoint halves of n images, (N² d(N) - n² d(n)) / (N² - n²).

Labels in equal shares (eval.label_mode=uniform) make samples scatter less than independent ones: every mean and variance is
then one within classes. Without this, classes that lie far apart are corrected for a scatter they do not have: with ten
classes twice as far apart as they are wide, N = 500 and D = 64, the value came out 1.2 too low, twelve times its spread.

The interval is the linearised bootstrap of `frechet.influence`, within classes where shares are equal. It covers the distance
of the generator's distribution to *this* reference set. Simulated with known normal, exponential, log-normal and rank-deficient
features, D = 8 … 64, N = 2.4 D … 60 D, distances of zero among them: 91 to 100 % of the 95 % intervals held the true
distance (88 % at worst for N = 2.1 D); of FID's 0 to 98 %. At N = 3 D, D = 64, the line of Chong & Forsyth had four times
the bias and 1.3 times the spread.

It needs two halves of full rank, so at least 2 (D + 1) images, and 4 of each class. The value may be slightly negative, as an
unbiased estimate of zero must be.

Shape letters: N images, D features, n images of one class.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.metrics.frechet import NULL, Gaussian, factor, frechet_value, gaussian, influence
from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resampled_means
from ldmlab.metrics.metric import OPTIONS, Computed, Inputs, Least, Metric

SHUFFLE_SEED = 2020  # of the halves
ROWS = 8192  # pairs of images whose products are held at a time
SMALL_CLASS = 12  # images: below, pairs cost less than a moment matrix of the class
FEWEST_OF_A_CLASS = 4  # two in each half, for a variance


@dataclass(frozen=True)
class FIDInfinity(Metric):
    """FID without the bias of few samples: its interval covers the distance of the distribution they come from."""

    name: ClassVar[str] = "fid_infinity"
    label: ClassVar[str] = "FID∞"
    better: ClassVar[Literal["lower", "higher"] | None] = "lower"
    interval: ClassVar[str] = "of the distance at infinitely many samples"
    covers: ClassVar[str] = (
        "the Fréchet distance of the samples' distribution, at infinitely many samples, to this reference set"
    )
    estimator: ClassVar[str] = "second-order bias removed, 1/N² extrapolated from halves, reference held fixed"

    def compute(self, inputs: Inputs) -> Computed:
        samples, reference = inputs.both()
        strata_N = equal_shares(inputs.labels())
        try:
            score = fid_infinity_score(
                samples.features, reference.features, inputs.bootstrap, inputs.seed, strata_N, inputs.options
            )
        except ConfigError as error:
            if self.required:
                raise
            return Computed(warnings=[f"Not computed: {error}"])
        return Computed({self.name: score})

    def least(self, feature_dim: int | None = None) -> Least:
        return Least(FEWEST_OF_A_CLASS if feature_dim is None else 2 * (feature_dim + 1), 2)


def equal_shares(label_N: np.ndarray | None) -> np.ndarray | None:
    """The labels [N] of samples where every class has the same number of them, or one more; otherwise None.

    Independent labels come out so evenly by chance only when there are few, and even then the classes may be taken as fixed.
    """
    if label_N is None:
        return None
    counts = np.unique(label_N, return_counts=True)[1]
    return label_N if counts.max() - counts.min() <= 1 else None


def fid_infinity_score(
    features: np.ndarray,
    reference: np.ndarray,
    bootstrap: int,
    seed: int,
    strata: np.ndarray | None = None,
    options: tuple[str, str] = OPTIONS,
) -> Score:
    """FID∞ of features [N, D] against reference features [M, D], with its interval.

    strata: class of each image [N] where the number of images of a class was fixed in advance; None: independent images.
    Raises ConfigError for too few images, naming `options`.
    """
    check_bootstrap(bootstrap)
    strata_N = np.zeros(len(features), dtype=np.int64) if strata is None else strata
    _check_images(features, strata_N, options[0])
    b = gaussian(reference, options[1])
    value = fid_infinity(features, b, strata_N)
    scatter_N = _within(influence(features, b), strata_N)
    replicates_R = value + resampled_means(scatter_N, bootstrap, seed)
    low, high = centred(value, replicates_R)
    shares = "" if strata is None else " within classes of equal shares"
    method = f"float64, {FIDInfinity.estimator}; {interval_text(bootstrap)}{shares}, linearised"
    return Score(value, low, high, len(features), method, seed, tuple(map(float, replicates_R)))


def fid_infinity(features: np.ndarray, b: Gaussian, strata: np.ndarray) -> float:
    """The squared Fréchet distance to `b` at infinitely many samples, from features [N, D] of classes `strata` [N]."""
    halves = _halves(strata)
    n, N = len(halves[0]), len(features)
    half = float(np.mean([less_first_order(features[rows], b, strata[rows]) for rows in halves]))
    return (N**2 * less_first_order(features, b, strata) - n**2 * half) / (N**2 - n**2)


def less_first_order(features: np.ndarray, b: Gaussian, strata: np.ndarray) -> float:
    """The squared Fréchet distance to `b` less its bias of order 1/N."""
    N = len(features)
    m_D = features.mean(axis=0, dtype=np.float64)
    x_ND = features.astype(np.float64) - m_D
    within_ND = _within(x_ND, strata)
    within_DD = within_ND.T @ within_ND / N
    a = Gaussian(m_D, (x_ND.T @ x_ND + within_DD) / N, N)  # the mean's own scatter is within_DD / N
    root_DD, _ = factor(b.covariance)
    values_D, vectors_DD = np.linalg.eigh(root_DD.T @ a.covariance @ root_DD)
    kept_D = values_D > max(values_D[-1] * NULL, 0.0)
    s_D = np.sqrt(values_D[kept_D])
    variance_DD = variance_of_products(x_ND @ (root_DD @ vectors_DD[:, kept_D]), strata)
    curvature_DD = 1 / (np.outer(s_D, s_D) * (s_D[:, None] + s_D))
    bias = float(np.trace(within_DD) + 0.5 * (curvature_DD * variance_DD).sum()) / N
    return frechet_value(a, b) - bias


def variance_of_products(y_ND: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """var(y_i y_j) within classes, unbiased, averaged over images, [D, D].

    With p_kl = y_ki y_kj y_li y_lj of images k, l of one class of n, it is Σ_k p_kk - Σ_k≠l p_kl / (n - 1), summed over
    classes. The second sum is a product of rows y_k y_l for small classes, and the squared class moments less p_kk for large ones.
    """
    N, D = y_ND.shape
    total_DD, moments_DD = np.zeros((D, D)), np.zeros((D, D))
    pairs, weights = [np.empty((2, 0), dtype=np.int64)], [np.empty(0)]
    own_N = np.ones(N)  # weight of p_kk
    for rows in _members(strata):
        n = len(rows)
        if n <= SMALL_CLASS:
            first, second = np.triu_indices(n, 1)
            pairs.append(np.stack([rows[first], rows[second]]))
            weights.append(np.full(len(first), 2 / (n - 1)))
        else:
            own_N[rows] += 1 / (n - 1)
            np.matmul(y_ND[rows].T, y_ND[rows], out=moments_DD)
            total_DD -= np.square(moments_DD, out=moments_DD) / (n - 1)
    every_N = np.arange(N)
    total_DD += _weighted_products(y_ND, every_N, every_N, own_N)
    first_P, second_P = np.concatenate(pairs, axis=1)
    total_DD -= _weighted_products(y_ND, first_P, second_P, np.concatenate(weights))
    return total_DD / N


def _weighted_products(y_ND: np.ndarray, first_P: np.ndarray, second_P: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    """Σ_P weight y_k y_kᵀ ∘ y_l y_lᵀ over pairs (k, l), [D, D]."""
    D = y_ND.shape[1]
    found_DD = np.zeros((D, D))
    for start in range(0, len(first_P), ROWS):
        part = slice(start, start + ROWS)
        product_rD = y_ND[first_P[part]] * y_ND[second_P[part]]
        found_DD += product_rD.T @ (product_rD * weight_P[part, None])
    return found_DD


def _members(strata: np.ndarray) -> list[np.ndarray]:
    """Rows of each class."""
    order_N = np.argsort(strata, kind="stable")
    return np.split(order_N, np.nonzero(np.diff(strata[order_N]))[0] + 1)


def _halves(strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two disjoint halves with equal numbers of each class, after a fixed shuffle; of an odd number one is left out."""
    rng = np.random.RandomState(SHUFFLE_SEED)
    shuffled = [(rng.permutation(rows), len(rows) // 2) for rows in _members(strata)]
    first, second = [rows[:n] for rows, n in shuffled], [rows[n : 2 * n] for rows, n in shuffled]
    return np.concatenate(first), np.concatenate(second)


def _within(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Deviations [N, …] from the mean of one's class, with the variance of an unbiased estimate."""
    found = np.empty_like(values)
    for rows in _members(strata):
        found[rows] = (values[rows] - values[rows].mean(axis=0)) * np.sqrt(len(rows) / (len(rows) - 1))
    return found


def _check_images(features: np.ndarray, strata: np.ndarray, option: str) -> None:
    (N, D), members = features.shape, _members(strata)
    way = "or leave 'fid_infinity' out of eval.metrics"
    if sum(len(rows) // 2 for rows in members) < D + 1:
        raise ConfigError(
            f"{option}={N}: FID∞ of {D} features needs two halves of at least {D + 1} images. "
            f"Set {option}={2 * (D + 1) + (len(members) if len(members) > 1 else 0)} or more, {way}."
        )
    fewest = min(map(len, members))
    if fewest < FEWEST_OF_A_CLASS:
        raise ConfigError(
            f"{option}={N}: FID∞ of labels in equal shares needs at least {FEWEST_OF_A_CLASS} images of each class and has "
            f"{fewest}. Set {option}={FEWEST_OF_A_CLASS * len(members)} or more, use eval.label_mode=random, {way}."
        )
