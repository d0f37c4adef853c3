"""Heun's method on dx/ds = eps, with x = z / alpha and s = sigma / alpha (Karras et al. 2022, Algorithms 1 and 2). Order 2.

A step is an interval of the grid and asks the denoiser twice, at its start and where Euler's step arrives; a step that
arrives at the data asks once, as there is nothing to predict there. With churn (Algorithm 2) a step first goes back to more
noise, by adding some.

Shape letters: B batch, C channels, H W space.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.ranges import Range, Steps
from ldmlab.samplers.base import Callback, Denoise, Level, Noise, Prediction, Schedule, after_step, at_time
from ldmlab.samplers.grid import Grid
from ldmlab.samplers.sampler import Rule, Sampler

MOST_NOISE = 160.0  # s where the paper's grid starts: sigma_max 80 for data of standard deviation 0.5


def improved(z_BCHW: Tensor, first: Prediction, second: Prediction, now: Level, then: Level) -> Tensor:
    """Euler's step again, from its result and the answers at its start and where it arrived: by the mean of both.

    The mean of the slopes eps, as in the paper, unless the step starts from more noise than the paper ever does. Cosine
    schedules end at s of some 10^4 or, without any signal, at infinity; the trapezoid over such a fall in s multiplies
    the difference of the slopes by thousands. There the mean is that of z_0, whose weight alpha' (1 - e^-h) is at most 1.
    """
    if now.sigma > MOST_NOISE * now.alpha:
        return z_BCHW + (then.alpha - then.sigma * now.alpha / now.sigma) / 2 * (second.z0 - first.z0)
    return z_BCHW + (then.sigma - then.alpha * now.sigma / now.alpha) / 2 * (
        second.eps - first.eps
    )  # alpha' (s' - s) / 2


def renoised(z_BCHW: Tensor, before: Level, after: Level, noise_BCHW: Tensor) -> Tensor:
    """z at a noisier level: x + √(s'² - s²) noise, with x = z / alpha and s = sigma / alpha."""
    added = math.sqrt(ratio_of(after) ** 2 - ratio_of(before) ** 2)
    return after.alpha * (z_BCHW / before.alpha + added * noise_BCHW)


@dataclass(frozen=True)
class Churn:
    """S_churn, S_tmin, S_tmax and S_noise of Karras et al. 2022, Algorithm 2; `amount` 0 is Algorithm 1.

    low and high are noise-to-signal ratios sigma / alpha of latents of unit variance; the paper's are for data of standard
    deviation 0.5, half of ours.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def raised(self, t: int, schedule: Schedule, steps: int) -> int:
        """The time to go back to from `t`: that nearest in sigma / alpha to (1 + gamma) times t's, as a network knows
        whole times alone (`round_sigma` of the official code); `t` itself where nothing is churned or no time is noisier."""
        ratio = ratio_of(schedule.at(t))
        if self.amount == 0 or not self.low <= ratio <= self.high:
            return t
        wanted = ratio * (1 + min(self.amount / steps, math.sqrt(2) - 1))
        near = t
        for later in range(t + 1, schedule.T):
            if abs(ratio_of(schedule.at(later)) - wanted) >= abs(ratio_of(schedule.at(near)) - wanted):
                break
            near = later
        return near


def ratio_of(level: Level) -> float:
    """s = sigma / alpha; infinite without signal."""
    return level.sigma / level.alpha if level.alpha > 0 else math.inf


NO_CHURN = Churn()


@torch.no_grad()
def heun(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    churn: Churn = NO_CHURN,
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped. `noise` is called once per step that goes back to more noise."""
    z_BCHW, steps = zT_BCHW, len(times) - 1
    for done, (start, s) in enumerate(pairwise(times), start=1):
        t = churn.raised(start, schedule, steps)
        now, then = schedule.at(t), schedule.at(s)
        if t != start:
            z_BCHW = renoised(z_BCHW, schedule.at(start), now, churn.noise * noise())
        predicted = denoise(z_BCHW, at_time(t, z_BCHW), cond)
        z_BCHW = then.alpha * predicted.z0 + then.sigma * predicted.eps  # Euler's step
        if then.sigma > 0:
            arrived = denoise(z_BCHW, at_time(s, z_BCHW), cond)
            z_BCHW = improved(z_BCHW, predicted, arrived, now, then)
        z_BCHW = after_step(callback, done, steps, z_BCHW)
    return z_BCHW


@dataclass(frozen=True)
class Heun(Sampler):
    """The options of Heun's method; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: intervals of the grid, 1 … T; about half the evaluations.
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).
        s_churn: how much noise is added in all (Karras et al. 2022, Algorithm 2): 0 is none, √2 - 1 times `steps` the most a
            step can take.
        s_tmin, s_tmax: it is added where s_tmin <= sigma / alpha <= s_tmax only; null is no upper end. (Twice the paper's,
            whose data have standard deviation 0.5.)
        s_noise: standard deviation of the added noise; slightly above 1 makes up for detail that networks take away.

    Raises ConfigError for values outside these ranges, for steps against T when it is called.
    """

    steps: Steps = 25
    grid: Grid = "trailing"
    s_churn: Annotated[float, Range(at_least=0, at_most=1e6)] = 0.0
    s_tmin: Annotated[float, Range(at_least=0, at_most=1e6)] = 0.0
    s_tmax: Annotated[float, Range(at_least=0, at_most=1e6)] | None = None
    s_noise: Annotated[float, Range(above=0, at_most=100)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s_churn < 0:
            raise ConfigError(f"sampler.s_churn must be at least 0 (0 is none); got {self.s_churn}.")
        if self.s_tmin < 0 or (self.s_tmax is not None and self.s_tmax <= self.s_tmin):
            raise ConfigError(
                "sampler.s_tmin and s_tmax must be noise-to-signal ratios with 0 <= s_tmin < s_tmax (null: no upper end); "
                f"got {self.s_tmin} and {self.s_tmax}."
            )
        if not self.s_noise > 0:
            raise ConfigError(f"sampler.s_noise must be greater than 0 (1 is exact); got {self.s_noise}.")

    @property
    def evaluations(self) -> int:
        """Of the denoiser, per sample: two a step, one in a last step that arrives at the data (grid "trailing")."""
        return 2 * self.steps - (self.grid == "trailing")

    @property
    def rule(self) -> Rule:
        high = math.inf if self.s_tmax is None else self.s_tmax
        return partial(heun, churn=Churn(self.s_churn, self.s_tmin, high, self.s_noise))
