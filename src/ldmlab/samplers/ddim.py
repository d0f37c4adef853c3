"""DDIM: Song et al. 2021, eq. 12 and 16. eta 0 is deterministic, eta 1 has the noise of ancestral sampling.

Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldmlab.ranges import Fraction, Steps
from ldmlab.samplers.base import Callback, Denoise, Noise, Schedule, after_step, at_time
from ldmlab.samplers.grid import Grid
from ldmlab.samplers.options import check_eta
from ldmlab.samplers.sampler import Rule, Sampler


@torch.no_grad()
def ddim(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    eta: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped. `noise` is called once per step that adds any."""
    z_BCHW = zT_BCHW
    for done, (t, s) in enumerate(pairwise(times), start=1):
        now, then = schedule.at(t), schedule.at(s)
        predicted = denoise(z_BCHW, at_time(t, z_BCHW), cond)
        # eq. 16, written so that nothing cancels: 1 - alpha_bar_t / alpha_bar_s = 1 - (alpha_t / alpha_s)²
        spread = eta * then.sigma / now.sigma * max(1 - (now.alpha / then.alpha) ** 2, 0.0) ** 0.5
        towards = max(then.sigma**2 - spread**2, 0.0) ** 0.5
        z_BCHW = then.alpha * predicted.z0 + towards * predicted.eps
        if spread > 0:
            z_BCHW = z_BCHW + spread * noise()
        z_BCHW = after_step(callback, done, len(times) - 1, z_BCHW)
    return z_BCHW


@dataclass(frozen=True)
class DDIM(Sampler):
    """The options of DDIM; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: network evaluations, 1 … T.
        eta: 0 (deterministic) … 1 (ancestral noise).
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for values outside these ranges; for steps against T when it is called.
    """

    steps: Steps = 50
    eta: Fraction = 0.0
    grid: Grid = "trailing"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    @property
    def rule(self) -> Rule:
        return partial(ddim, eta=self.eta)
