"""What every sampler object does beside its own rule.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldmlab.samplers.base import Callback, Denoise, Noise, Schedule
from ldmlab.samplers.grid import Grid, times
from ldmlab.samplers.options import GuidanceOptions
from ldmlab.samplers.start import Project, Start, projecting

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
        start: Start | None = None,
        project: Project | None = None,
    ) -> Tensor:
        """z_0 from z_T ~ N(0, I), or from images at a strength (`start`; z_T is then the noise on them).

        `project` is applied to z after each step, the last included, before the callback sees it.
        """
        times, z_BCHW = self.times(schedule.T), zT_BCHW
        if start is not None:
            times = start.times(times, schedule.T)
            z_BCHW = start.noised(zT_BCHW, schedule.at(times[0]))
        after = callback if project is None else projecting(project, times, schedule, callback)
        return self.rule(denoise, z_BCHW, times, schedule, cond, noise, callback=after)
