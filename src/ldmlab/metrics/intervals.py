"""How sure a number is: bootstrap over images, Wilson's interval for shares, and the difference of two runs.

One resample of n images is a vector of counts that sums to n. Counts are a pure function of (n, seed, stream), so two
runs scored with the same n and seed are resampled alike, image by image, and their replicates can be subtracted
(`paired_interval`).

A score of a resample is biased against the score of the sample itself (a resample has fewer distinct images). So
intervals are *centred*: value + quantiles of (replicate - mean of replicates), never the raw quantiles of replicates.

Shape letters: R replicates, N images.
"""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.randomness import seed_of

LEVEL = 0.95
SAMPLING = "the mean of this score over other sets of as many images, drawn in the same way"
Z = 1.959963984540054  # the normal quantile of LEVEL
FEWEST = 20  # replicates below which no interval is offered
QUANTILES = 100  # replicates below which a normal interval is steadier than two tail quantiles


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """A metric's value, its 95 % interval, over how many images, how both were computed, and what the interval covers."""

    value: float
    low: float
    high: float
    n: int
    method: str
    seed: int = 0
    replicates: tuple[float, ...] = ()
    covers: str = SAMPLING

    def to_dict(self) -> dict[str, object]:
        """For json; `replicates` go along so that two runs can be compared later without their features."""
        return {**asdict(self), "replicates": list(self.replicates)}

    @staticmethod
    def from_dict(row: dict) -> "Score":
        return Score(**{**row, "replicates": tuple(row["replicates"])})


class Difference(NamedTuple):
    """b - a with a 95 % interval; `distinguishable` when the interval leaves out zero."""

    value: float
    low: float
    high: float
    distinguishable: bool


def check_bootstrap(bootstrap: int) -> None:
    if bootstrap < FEWEST:
        raise ConfigError(
            f"eval.bootstrap must be at least {FEWEST} resamples; got {bootstrap}. Set eval.bootstrap={2 * QUANTILES}."
        )


def resamples(n: int, bootstrap: int, seed: int, stream: str = "") -> np.ndarray:
    """How often each of n images is drawn in each resample: int64 [R, N], every row sums to n."""
    counts_RN = np.empty((bootstrap, n), dtype=np.int64)
    for r in range(bootstrap):
        counts_RN[r] = _resample(n, seed, stream, r)
    return counts_RN


def resampled_means(values_N: np.ndarray, bootstrap: int, seed: int, stream: str = "") -> np.ndarray:
    """The mean of one number per image over each resample, float64 [R]; holds one resample at a time."""
    N = len(values_N)
    return np.array([_resample(N, seed, stream, r) @ values_N / N for r in range(bootstrap)])


def _resample(n: int, seed: int, stream: str, r: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed_of(seed, "bootstrap", stream, r)))
    return np.bincount(rng.integers(0, n, n), minlength=n)


def centred(value: float, replicates_R: np.ndarray, lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """The 95 % interval around `value` from replicates, cut at what the metric can be."""
    spread_R = np.asarray(replicates_R, dtype=np.float64) - np.mean(replicates_R)
    if len(spread_R) < QUANTILES:
        half = Z * float(np.std(spread_R, ddof=1))
        low, high = value - half, value + half
    else:
        low, high = value + np.quantile(spread_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(max(low, lowest)), float(min(high, highest)))


def interval_text(replicates: int) -> str:
    """What `centred` does with so many replicates, in words."""
    kind = "normal interval from" if replicates < QUANTILES else "centred percentiles of"
    return f"{kind} {replicates} resamples of the images"


def wilson(successes: float, n: int) -> Interval:
    """Wilson's 95 % interval for a share: what the bootstrap of n yes/no answers tends to, but honest at 0 and 1."""
    p, zz = successes / n, Z * Z / n
    middle, half = (p + zz / 2) / (1 + zz), Z * math.sqrt(p * (1 - p) / n + zz / (4 * n)) / (1 + zz)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mean_score(values_N: np.ndarray, bootstrap: int, seed: int, method: str) -> Score:
    """The mean of one number per image, with its bootstrap interval."""
    check_bootstrap(bootstrap)
    values_N = np.asarray(values_N, dtype=np.float64)
    replicates_R = resamples(len(values_N), bootstrap, seed) @ values_N / len(values_N)
    value = float(values_N.mean())
    low, high = centred(value, replicates_R)
    text = f"{method}; {interval_text(bootstrap)}"
    return Score(value, low, high, len(values_N), text, seed, tuple(map(float, replicates_R)))


def share_score(hits_N: np.ndarray, bootstrap: int, seed: int, method: str) -> Score:
    """A share of images, with Wilson's interval; the replicates serve `paired_interval`."""
    check_bootstrap(bootstrap)
    hits_N = np.asarray(hits_N, dtype=np.float64)
    replicates_R = resamples(len(hits_N), bootstrap, seed) @ hits_N / len(hits_N)
    low, high = wilson(float(hits_N.sum()), len(hits_N))
    text = f"{method}; Wilson interval over {len(hits_N)} images"
    return Score(float(hits_N.mean()), low, high, len(hits_N), text, seed, tuple(map(float, replicates_R)))


def paired_interval(a: Score, b: Score) -> Difference:
    """b - a of two runs scored against the same reference, from the replicates stored with both.

    With equal n and seed the resamples pick the same image numbers in both runs, so what the runs share (start noise,
    labels) cancels; with unequal n or seed they are independent and so is the interval's width. Both are valid.
    Raises ValueError when the two were not resampled equally often.
    """
    if len(a.replicates) != len(b.replicates) or len(a.replicates) < FEWEST:
        raise ValueError(
            f"{len(a.replicates)} and {len(b.replicates)} replicates; both need the same eval.bootstrap >= {FEWEST}"
        )
    value = b.value - a.value
    low, high = centred(value, np.asarray(b.replicates) - np.asarray(a.replicates))
    return Difference(value, low, high, not low <= 0 <= high)
