"""Fréchet distance between two Gaussians fitted to features (Heusel et al. 2017, eq. 6).

    d² = |m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^½)

tr (S_a S_b)^½ is the sum of the square roots of the eigenvalues of Lᵀ S_a L with S_b = L Lᵀ: a symmetric, positive
semi-definite problem in float64, so nothing complex ever arises. The same trace is computed again from the
symmetric square root of the *other* matrix; both must agree.

The interval is a linearised bootstrap. With M = Lᵀ S_a L, the derivative of d² in the direction of one image x is

    psi(x) = 2 (m_a - m_b)·x' + |x'|² - (Lᵀx')ᵀ M^-½ (Lᵀx')  less its mean,    x' = x - m_a

and a resample moves d² by the mean of psi over it. Resampling the covariance itself costs an eigenvalue problem a time
and is *less* right: on Gaussian features its spread was 1.5 to 2.2 times that of independent sets of N = 0.75 D … 2.5 D
images and 1.2 times at N = 9 D, the linearised one 0.96 to 1.2 and 1.06 times.

Shape letters: N images, D features, R replicates.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resamples
from ldmlab.metrics.metric import OPTIONS, Computed, Inputs, Least, Metric

AGREE = 1e-6  # of tr S_a + tr S_b: how far the two ways of taking the trace may differ before a warning
NULL = 1e-10  # of the largest eigenvalue: below it a direction has no images in it
FEW = 0.005  # of the images: if these alone carry
CARRIED = 0.2  # of a FID, that is said; of Gaussian features they never do (tests/metrics/test_frechet.py)
NAMED = 5  # of them, by their place among the samples


class Gaussian(NamedTuple):
    """Mean [D] and unbiased covariance [D, D] in float64, and how many images they come from."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int


@dataclass(frozen=True)
class FID(Metric):
    """Fréchet inception distance at this N (Heusel et al. 2017): its bias falls with N and stays in the value."""

    name: ClassVar[str] = "fid"
    label: ClassVar[str] = "FID"
    better: ClassVar[Literal["lower", "higher"] | None] = "lower"
    covers: ClassVar[str] = (
        "the mean FID of other sets of as many images against this reference; the distance at infinitely many images is "
        "lower and usually outside (FID∞ covers it)"
    )
    estimator: ClassVar[str] = "unbiased covariance, float64, eigenvalues of the symmetric form"

    def compute(self, inputs: Inputs) -> Computed:
        samples, reference = inputs.both()
        score, warnings = fid_score(samples.features, reference.features, inputs.bootstrap, inputs.seed, inputs.options)
        return Computed({self.name: score}, warnings)

    def least(self, feature_dim: int | None = None) -> Least:
        return Least(2, 2)


class Frechet(NamedTuple):
    value: float
    method: str
    disagreement: float  # |trace - trace by the second method| / (tr S_a + tr S_b)


def gaussian(features: np.ndarray, option: str = "eval.samples") -> Gaussian:
    """Moments of features [N, D]. Raises ConfigError naming `option` for fewer than two images."""
    if len(features) < 2:
        raise ConfigError(f"{option}: FID needs at least 2 images; got {len(features)}.")
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    return Gaussian(mean, x.T @ x / (len(x) - 1), len(x))


def frechet(a: Gaussian, b: Gaussian) -> Frechet:
    """Squared Fréchet distance (never below 0), the method of the trace, and how well a second method agrees."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of different networks: {a.mean.shape[0]} and {b.mean.shape[0]} numbers per image")
    root, method = factor(b.covariance)
    trace = _sum_of_roots(root.T @ a.covariance @ root)
    other = _symmetric_factor(a.covariance)
    check = _sum_of_roots(other.T @ b.covariance @ other)
    total = float(np.trace(a.covariance) + np.trace(b.covariance))
    shift = a.mean - b.mean
    value = float(shift @ shift) + total - 2 * trace
    return Frechet(max(value, 0.0), method, abs(trace - check) / total if total > 0 else 0.0)


def frechet_value(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance by one method, not cut at 0: for estimates of which many are made."""
    root, _ = factor(b.covariance)
    shift = a.mean - b.mean
    total = float(np.trace(a.covariance) + np.trace(b.covariance))
    return float(shift @ shift) + total - 2 * _sum_of_roots(root.T @ a.covariance @ root)


def fid_score(
    features: np.ndarray, reference: np.ndarray, bootstrap: int, seed: int, options: tuple[str, str] = OPTIONS
) -> tuple[Score, list[str]]:
    """FID of generated features [N, D] against reference features [M, D], with warnings.

    options: what decides N and what decides M, for the messages.

    The interval says how the value moves over other sets of N generated images: the reference is held fixed, and the
    bias that FID has at N images stays in the value.
    """
    check_bootstrap(bootstrap)
    a, b = gaussian(features, options[0]), gaussian(reference, options[1])
    found = frechet(a, b)
    psi_N = influence(features, b)
    replicates_R = found.value + resamples(a.n, bootstrap, seed) @ psi_N / a.n
    low, high = centred(found.value, replicates_R, lowest=0.0)
    method = f"float64, {found.method}; {interval_text(bootstrap)}, linearised, reference held fixed"
    warnings = []
    D = len(a.mean)
    for what, g, option in (("samples", a, options[0]), ("reference images", b, options[1])):
        if g.n <= D:
            warnings.append(
                f"FID: {g.n} {what} for {D} features: their covariance has no full rank and the value is inflated. "
                f"{option} above {D} removes this."
            )
    if found.disagreement > AGREE:
        warnings.append(f"FID: two ways of taking the matrix root differ by {found.disagreement:.1e} of the variance.")
    warnings += carried_by_few(features, psi_N, found.value, b)
    return Score(found.value, low, high, a.n, method, seed, tuple(map(float, replicates_R))), warnings


def carried_by_few(features: np.ndarray, psi_N: np.ndarray, value: float, reference: Gaussian) -> list[str]:
    """A warning where a FID of `value` is that of a few images: extractors answer to some pictures, real ones among them, with
    features many times as long as all others, and ten such samples of 2 000 can double a FID.
    """
    n = len(features)
    far = psi_N.argsort()[::-1][: int(FEW * n)]
    if not len(far) or n - len(far) <= features.shape[1] or psi_N[far].sum() < CARRIED * value * n:  # to first order
        return []
    without = frechet_value(gaussian(np.delete(features, far, axis=0)), reference)
    if without > (1 - CARRIED) * value:
        return []
    places = ", ".join(map(str, far[:NAMED]))
    return [
        f"FID: {len(far)} of {n} images carry {1 - without / value:.0%} of it; without them it is {without:.3g}. Look at them before "
        f"comparing (counted from 0: {places}{' …' if len(far) > NAMED else ''})."
    ]


def influence(features: np.ndarray, reference: Gaussian) -> np.ndarray:
    """How the distance to a fixed reference moves per unit weight of each image, float64 [N], mean 0."""
    root_DD, _ = factor(reference.covariance)
    a = gaussian(features)
    x_ND = features.astype(np.float64) - a.mean
    values_D, vectors_DD = np.linalg.eigh(root_DD.T @ a.covariance @ root_DD)
    kept_D = values_D > max(values_D[-1] * NULL, 0.0)
    along_ND = x_ND @ (root_DD @ vectors_DD[:, kept_D])
    psi_N = 2 * x_ND @ (a.mean - reference.mean) + np.square(x_ND).sum(axis=1)
    psi_N -= (np.square(along_ND) / np.sqrt(values_D[kept_D])).sum(axis=1)
    return psi_N - psi_N.mean()


def factor(covariance_DD: np.ndarray) -> tuple[np.ndarray, str]:
    """L with S = L Lᵀ, and its name: Cholesky, or the eigenvectors' form when S has no full rank."""
    try:
        return np.linalg.cholesky(covariance_DD), "eigvalsh of the Cholesky form"
    except np.linalg.LinAlgError:
        return _symmetric_factor(covariance_DD), "eigvalsh of the eigh form (covariance without full rank)"


def _symmetric_factor(covariance_DD: np.ndarray) -> np.ndarray:
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    return vectors_DD * np.sqrt(values_D.clip(min=0))


def _sum_of_roots(symmetric_DD: np.ndarray) -> float:
    values_D = np.linalg.eigvalsh((symmetric_DD + symmetric_DD.T) / 2)
    return float(np.sqrt(values_D.clip(min=0)).sum())
