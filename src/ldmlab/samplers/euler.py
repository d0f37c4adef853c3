"""Euler's method on dx/ds = eps, with x = z / alpha and s = sigma / alpha (Karras et al. 2022, Algorithm 1 without its
second-order part). One evaluation a step, order 1.

x + (s' - s) eps, back in z, is alpha' z_0 + sigma' eps: DDIM's step with eta 0, and so is Euler's method in any variables
whose paths are straight where z_0 and eps stand still (rectified flow among them). The two names give the same samples.

Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldmlab.samplers.base import Callback, Denoise, Noise, Schedule
from ldmlab.samplers.ddim import ddim
from ldmlab.samplers.grid import Grid, times
from ldmlab.samplers.options import GuidanceOptions


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
class Euler(GuidanceOptions):
    """The options of Euler's method; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: network evaluations, 1 … T.
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for steps against T when it is called.
    """

    steps: int = 50
    grid: Grid = "trailing"

    @property
    def evaluations(self) -> int:
        """Of the denoiser, per sample: one a step."""
        return self.steps

    def times(self, T: int) -> list[int]:
        """The times visited with a schedule of T steps; ConfigError when the steps do not fit."""
        return times(T, self.steps, self.grid)

    def __call__(
        self,
        denoise: Denoise,
        zT_BCHW: Tensor,
        schedule: Schedule,
        cond: Any,
        noise: Noise,
        callback: Callback | None = None,
    ) -> Tensor:
        """z_0 from z_T ~ N(0, I)."""
        return euler(denoise, zT_BCHW, self.times(schedule.T), schedule, cond, noise, callback)
