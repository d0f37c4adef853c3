"""DDPM: ancestral sampling, Ho et al. 2020, Algorithm 2, on any subset of the times (Nichol & Dhariwal 2021, §4).

Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ldmlab.ranges import Steps
from ldmlab.samplers.base import Callback, Denoise, Noise, Schedule, after_step, at_time
from ldmlab.samplers.grid import Grid
from ldmlab.samplers.sampler import Rule, Sampler

Variance = Literal["small", "large"]


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    variance: Variance = "small",
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped. `noise` is called once per step that adds any.

    A step from t to s has beta = 1 - alpha_bar_t / alpha_bar_s of the times used, not of their neighbours. Its noise
    has variance "small": beta (1 - alpha_bar_s) / (1 - alpha_bar_t), right for data that are one point, or "large":
    beta, right for data that are N(0, I) (Ho et al. 2020, §3.2). A step that arrives at the data adds none.
    """
    z_BCHW = zT_BCHW
    for done, (t, s) in enumerate(pairwise(times), start=1):
        now, then = schedule.at(t), schedule.at(s)
        predicted = denoise(z_BCHW, at_time(t, z_BCHW), cond)
        ratio = now.alpha / then.alpha
        beta = 1 - ratio**2
        share = (then.sigma / now.sigma) ** 2
        z_BCHW = then.alpha * beta / now.sigma**2 * predicted.z0 + ratio * share * z_BCHW  # eq. 7
        spread = (beta * share if variance == "small" else beta) ** 0.5
        if s >= 0:
            z_BCHW = z_BCHW + spread * noise()
        z_BCHW = after_step(callback, done, len(times) - 1, z_BCHW)
    return z_BCHW


@dataclass(frozen=True)
class DDPM(Sampler):
    """The options of DDPM; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: network evaluations, 1 … T.
        variance: of the noise added in each step, "small" (the true posterior's given z_0) or "large" (beta).
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for values outside these ranges; for steps against T when it is called.
    """

    steps: Steps = 1000
    variance: Variance = "small"
    grid: Grid = "trailing"

    @property
    def rule(self) -> Rule:
        return partial(ddpm, variance=self.variance)
