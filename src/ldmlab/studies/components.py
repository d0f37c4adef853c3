"""How sure a mean over retrained cells is: variance between seeds that nest, and variance between images, put together.

The model of one response y of N cells (the logarithm of FID, say), nested random effects (Searle, Casella & McCulloch,
*Variance Components*, 1992, ch. 5):

    y = arm + first stage (within its arm) + denoiser (within its first stage) + sampling (within its denoiser) + images

The images' covariance V is known from the bootstrap, which resamples all cells alike. The other variances are the same in every
arm and are estimated by the method of moments: E[SS_k] = sum_j T_kj sigma_j^2 + tr(Q_k V), with SS_k = y' Q_k y.
A linear combination of cells has a t interval with Satterthwaite's degrees of freedom. Two seeds in each of four arms are
four degrees of freedom; one seed alone has none, and then there is no interval.

Shape letters: N cells, A arms, K levels (first stage, denoiser, sampling).
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
LEVELS = ("first stage", "denoiser", "sampling")
NO_LESS = 1e-12  # of a squared variance: below this it is rounding


class Interval(NamedTuple):
    """A linear combination of cells with its 95 % interval. df: Satterthwaite's degrees of freedom."""

    value: float
    low: float
    high: float
    df: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


class Component(NamedTuple):
    """One level's variance, never negative; None where no seed of it was varied. df: its degrees of freedom."""

    level: str
    variance: float | None
    df: int


@dataclass(frozen=True)
class Nested:
    """N cells in their arms. first_N and denoiser_N name the first stage and the denoiser of each cell (equal names in two
    arms are two things). trained_N: whether its first stage is trained; one in closed form has no seed to vary.
    covariance_NN: of the response between resamples of the images.
    """

    arm_N: tuple[str, ...]
    first_N: tuple[str, ...]
    denoiser_N: tuple[str, ...]
    trained_N: tuple[bool, ...]
    y_N: np.ndarray
    covariance_NN: np.ndarray

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.arm_N))

    @cached_property
    def _groups(self) -> list[np.ndarray]:
        """Indicator matrices: arms, first stages, denoisers, cells."""
        arms = list(self.arm_N)
        firsts = [f"{a}/{f}" for a, f in zip(arms, self.first_N, strict=True)]
        denoisers = [f"{f}/{d}" for f, d in zip(firsts, self.denoiser_N, strict=True)]
        return [*map(_indicator, (arms, firsts, denoisers)), np.eye(len(arms))]

    @cached_property
    def df_K(self) -> tuple[int, ...]:
        sizes = [group.shape[1] for group in self._groups]
        return tuple(int(b - a) for a, b in pairwise(sizes))

    @cached_property
    def _effects_KNN(self) -> np.ndarray:
        """Z Z' of each level. A first stage in closed form varies only where first stages stand for denoisers as well."""
        effects = np.stack([group @ group.T for group in self._groups[1:]])
        if self.df_K[1]:
            fixed = ~np.array(self.trained_N)
            effects[0][fixed, :] = effects[0][:, fixed] = 0
        return effects

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(SS_K, T_KK, images' part of E[SS] of each level)."""
        spans = [group @ np.diag(1 / group.sum(0)) @ group.T for group in self._groups]
        q_KNN = np.stack([b - a for a, b in pairwise(spans)])
        ss_K = np.einsum("n,knm,m->k", self.y_N, q_KNN, self.y_N)
        t_KK = np.einsum("knm,jmn->kj", q_KNN, self._effects_KNN)
        return ss_K, t_KK, np.einsum("knm,mn->k", q_KNN, self.covariance_NN)

    @cached_property
    def variance_K(self) -> np.ndarray:
        """sigma_k^2, from the innermost level out; negative ones become zero, levels that were not varied are zero."""
        (ss_K, t_KK, images_K), found_K = self._moments, np.zeros(3)
        for k in (2, 1, 0):
            if self.df_K[k]:
                found_K[k] = max(0.0, (ss_K[k] - images_K[k] - t_KK[k] @ found_K) / t_KK[k, k])
        return found_K

    @property
    def components(self) -> list[Component]:
        return [
            Component(level, float(v) if df else None, df)
            for level, v, df in zip(LEVELS, self.variance_K, self.df_K, strict=True)
        ]

    @property
    def image_variance(self) -> float:
        """Of one cell, the mean over cells."""
        return float(np.mean(np.diag(self.covariance_NN)))

    @property
    def retrained(self) -> bool:
        """Whether anything was trained twice: without that no interval says how another training would end."""
        return self.df_K[0] + self.df_K[1] > 0

    def weights(self, by_arm: dict[str, float]) -> np.ndarray:
        """Cells' weights of a combination of arm means; an arm's mean is that of its first stages, each that of its denoisers."""
        paths = list(zip(self.arm_N, self.first_N, self.denoiser_N, strict=True))
        known = set(paths)
        firsts, denoisers = Counter(arm for arm, _ in {path[:2] for path in paths}), Counter(path[:2] for path in known)
        cells = Counter(paths)
        shares = [1 / (firsts[path[0]] * denoisers[path[:2]] * cells[path]) for path in paths]
        return np.array([by_arm.get(path[0], 0.0) * share for path, share in zip(paths, shares, strict=True)])

    def variance_NN(self) -> np.ndarray:
        """Covariance of the cells, all levels and images."""
        return np.einsum("k,knm->nm", self.variance_K, self._effects_KNN) + self.covariance_NN

    def parts(self, w_N: np.ndarray) -> tuple[float, float, float]:
        """What each level adds to the variance of w'y."""
        first, denoiser, sampling = self.variance_K * np.einsum("n,knm,m->k", w_N, self._effects_KNN, w_N)
        return float(first), float(denoiser), float(sampling)

    def df_of(self, w_N: np.ndarray) -> float:
        """Satterthwaite's degrees of freedom of the variance of w'y; the images' part counts as known."""
        ss_K, t_KK, _ = self._moments
        varied = [k for k in range(3) if self.df_K[k]]
        gain_K = np.einsum("n,knm,m->k", w_N, self._effects_KNN, w_N)[varied]
        lambda_K = np.linalg.solve(t_KK[np.ix_(varied, varied)].T, gain_K)
        spread = sum((x * ss_K[k]) ** 2 / self.df_K[k] for x, k in zip(lambda_K, varied, strict=True))
        total = float(w_N @ self.variance_NN() @ w_N)
        least = min(self.df_K[k] for k in varied)  # of any sum of these; below it is rounding
        return max(least, total**2 / spread) if spread > NO_LESS * total**2 else np.inf

    def contrast(self, by_arm: dict[str, float]) -> Interval | None:
        """sum of weight times arm mean with its 95 % interval; None where nothing was trained twice."""
        if not self.retrained:
            return None
        w_N = self.weights(by_arm)
        value, sd = float(w_N @ self.y_N), float(np.sqrt(max(0.0, w_N @ self.variance_NN() @ w_N)))
        df = self.df_of(w_N)
        half = float(stats.t.ppf((1 + LEVEL) / 2, min(df, 1e6))) * sd
        return Interval(value, value - half, value + half, df)


def _indicator(names: list[str]) -> np.ndarray:
    known = list(dict.fromkeys(names))
    return np.array([[float(name == other) for other in known] for name in names])
