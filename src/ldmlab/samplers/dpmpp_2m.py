"""DPM-Solver++(2M) and its SDE form: Lu et al. 2022b (arXiv 2211.01095), Algorithm 2. One evaluation a step.

Order 2 with eta 0. Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldmlab.ranges import Fraction, Steps
from ldmlab.samplers.base import Callback, Denoise, Level, Noise, Schedule, after_step, at_time
from ldmlab.samplers.grid import Grid
from ldmlab.samplers.multistep import half_ahead
from ldmlab.samplers.options import check_eta
from ldmlab.samplers.sampler import Rule, Sampler

FEW = 15  # with fewer steps than this the last one is of order 1, as in diffusers


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    eta: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped. `noise` is called once per step that adds any.

    eta 0 solves the probability-flow ODE, eta 1 the reverse SDE (SDE-DPM-Solver++(2M)); between them the noise is
    weighted as in k-diffusion, z' = (sigma'/sigma) q^eta z + alpha' (1 - q^(1+eta)) D + sigma' √(1 - q^(2 eta)) noise with
    q = e^-h. A step that arrives at the data is D = z_0: nothing is extrapolated and no noise added.
    """
    z_BCHW, steps = zT_BCHW, len(times) - 1
    before: tuple[Level, Tensor] | None = None
    for done, (t, s) in enumerate(pairwise(times), start=1):
        now, then = schedule.at(t), schedule.at(s)
        z0_BCHW = denoise(z_BCHW, at_time(t, z_BCHW), cond).z0
        towards_BCHW = z0_BCHW
        if before is not None and then.sigma > 0 and not (done == steps < FEW):
            towards_BCHW = z0_BCHW + half_ahead(before[0], now, then) * (z0_BCHW - before[1])
        q = then.sigma * now.alpha / (then.alpha * now.sigma)
        z_BCHW = then.sigma / now.sigma * q**eta * z_BCHW + then.alpha * (1 - q ** (1 + eta)) * towards_BCHW
        spread = then.sigma * (1 - q ** (2 * eta)) ** 0.5
        if spread > 0:
            z_BCHW = z_BCHW + spread * noise()
        before = now, z0_BCHW
        z_BCHW = after_step(callback, done, steps, z_BCHW)
    return z_BCHW


@dataclass(frozen=True)
class DPMpp2M(Sampler):
    """The options of DPM-Solver++(2M); calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: network evaluations, 1 … T.
        eta: 0 (the ODE) … 1 (the SDE).
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for values outside these ranges; for steps against T when it is called.
    """

    steps: Steps = 20
    eta: Fraction = 0.0
    grid: Grid = "trailing"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    @property
    def rule(self) -> Rule:
        return partial(dpmpp_2m, eta=self.eta)
