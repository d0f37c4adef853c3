"""PLMS: the released code's sampler (ldm/models/diffusion/plms.py), after Liu et al. 2022 without its Runge-Kutta start.

Adams-Bashforth's weights of order 2, 3 and 4 on eps, then DDIM's step. The weights are those of equal steps, and the steps
are not equal in sigma / alpha, so that the order of the whole is 2 ("pseudo" linear multistep). One evaluation a step; the
first step takes two.

Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldmlab.ranges import Steps
from ldmlab.samplers.base import Callback, Denoise, Noise, Schedule, after_step, at_time
from ldmlab.samplers.grid import Grid
from ldmlab.samplers.heun import improved
from ldmlab.samplers.sampler import Rule, Sampler

WEIGHTS = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Adams-Bashforth, for the newest eps first."""


@torch.no_grad()
def plms(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped, `noise` is never called.

    The first step is Heun's ("pseudo improved Euler"); a single step, which has no further time to ask at, is DDIM's.
    """
    z_BCHW = zT_BCHW
    newest_first: list[Tensor] = []
    for done, (t, s) in enumerate(pairwise(times), start=1):
        now, then = schedule.at(t), schedule.at(s)
        predicted = denoise(z_BCHW, at_time(t, z_BCHW), cond)
        newest_first = [predicted.eps, *newest_first[:3]]
        z_BCHW = then.alpha * predicted.z0 + then.sigma * predicted.eps
        if done == 1 and len(times) > 2:
            arrived = denoise(z_BCHW, at_time(s, z_BCHW), cond)
            z_BCHW = improved(z_BCHW, predicted, arrived, now, then)
        elif done > 1:
            extrapolated = zip(WEIGHTS[len(newest_first)], newest_first, strict=True)
            change_BCHW = torch.stack([weight * eps for weight, eps in extrapolated]).sum(0) - predicted.eps
            # What DDIM's step does to eps when z_0 is (z_t - sigma eps) / alpha
            z_BCHW = z_BCHW + (then.sigma - then.alpha * now.sigma / now.alpha) * change_BCHW
        z_BCHW = after_step(callback, done, len(times) - 1, z_BCHW)
    return z_BCHW


@dataclass(frozen=True)
class PLMS(Sampler):
    """The options of PLMS; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: steps of the grid, 1 … T.
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for steps against T when it is called.
    """

    steps: Steps = 50
    grid: Grid = "trailing"

    @property
    def evaluations(self) -> int:
        """Of the denoiser, per sample: one a step and one more in the first; a single step is DDIM's."""
        return self.steps + (self.steps > 1)

    @property
    def rule(self) -> Rule:
        return plms
