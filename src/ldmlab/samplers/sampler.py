"""What every sampler object does beside its own rule.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldmlab.samplers.base import Callback, Denoise, Noise, Schedule
from ldmlab.samplers.grid import Grid, times
from ldmlab.samplers.options import GuidanceOptions

Rule = Callable[..., Tensor]
"""(denoise, z_T, times, schedule, cond, noise, callback=…) → z_0; the function that gives a file its name."""


class Sampler(GuidanceOptions):
    """Options of a sampler; calling it samples. A sampler is a dataclass of its options with its `rule`."""

    steps: int
    grid: Grid

    @property
    def rule(self) -> Rule:
        """The sampler's function, with its own options given."""
        raise NotImplementedError

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
        return self.rule(denoise, zT_BCHW, self.times(schedule.T), schedule, cond, noise, callback=callback)
