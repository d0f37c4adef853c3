"""Heun's method on dx/ds = eps, with x = z / alpha and s = sigma / alpha (Karras et al. 2022, Algorithm 1). Order 2.

A step is an interval of the grid and asks the denoiser twice, at its start and where Euler's step arrives; a step that
arrives at the data asks once, as there is nothing to predict there. Without the paper's churn.

Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldmlab.samplers.base import Callback, Denoise, Level, Noise, Prediction, Schedule
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


@torch.no_grad()
def heun(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped, `noise` is never called."""
    z_BCHW = zT_BCHW
    for done, (t, s) in enumerate(pairwise(times), start=1):
        now, then = schedule.at(t), schedule.at(s)
        predicted = denoise(z_BCHW, torch.full((len(z_BCHW),), t, device=z_BCHW.device), cond)
        z_BCHW = then.alpha * predicted.z0 + then.sigma * predicted.eps  # Euler's step
        if then.sigma > 0:
            arrived = denoise(z_BCHW, torch.full((len(z_BCHW),), s, device=z_BCHW.device), cond)
            z_BCHW = improved(z_BCHW, predicted, arrived, now, then)
        if callback is not None:
            callback(done, len(times) - 1, z_BCHW)
    return z_BCHW


@dataclass(frozen=True)
class Heun(Sampler):
    """The options of Heun's method; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: intervals of the grid, 1 … T; about half the evaluations.
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for steps against T when it is called.
    """

    steps: int = 25
    grid: Grid = "trailing"

    @property
    def evaluations(self) -> int:
        """Of the denoiser, per sample: two a step, one in a last step that arrives at the data (grid "trailing")."""
        return 2 * self.steps - (self.grid == "trailing")

    @property
    def rule(self) -> Rule:
        return heun
