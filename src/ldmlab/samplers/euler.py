"""Euler's method on dx/ds = eps, with x = z / alpha and s = sigma / alpha (Karras et al. 2022, Algorithm 1 without its
second-order part). One evaluation a step, order 1.

x + (s' - s) eps, back in z, is alpha' z_0 + sigma' eps: DDIM's step with eta 0, and so is Euler's method in any variables
whose paths are straight where z_0 and eps stand still (rectified flow among them). The two names give the same samples.

Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldmlab.ranges import Steps
from ldmlab.samplers.base import Callback, Denoise, Noise, Schedule
from ldmlab.samplers.ddim import ddim
from ldmlab.samplers.grid import Grid
from ldmlab.samplers.sampler import Rule, Sampler


def euler(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped, `noise` is never called."""
    return ddim(denoise, zT_BCHW, times, schedule, cond, noise, 0.0, callback)


@dataclass(frozen=True)
class Euler(Sampler):
    """The options of Euler's method; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: network evaluations, 1 … T.
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for steps against T when it is called.
    """

    steps: Steps = 50
    grid: Grid = "trailing"

    @property
    def rule(self) -> Rule:
        return euler
