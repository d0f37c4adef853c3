"""UniPC of order 2 with B(h) = bh2 = e^h - 1, in data prediction: Zhao et al. 2023 (arXiv 2302.04867). One evaluation a step.

UniP-2 predicts (with bh2 it is DPM-Solver++(2M)'s step); the prediction at the new z corrects the step just taken (UniC)
and, not asked again at the corrected z, serves the next one. Shape letters: B batch, C channels, H W space.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldmlab.ranges import Steps
from ldmlab.samplers.base import Callback, Denoise, Level, Noise, Schedule, after_step, at_time
from ldmlab.samplers.grid import Grid
from ldmlab.samplers.multistep import half_ahead, half_log_snr
from ldmlab.samplers.sampler import Rule, Sampler

Evaluated = tuple[Level, Tensor]  # a level and the z_0 predicted there


def predict(z_BCHW: Tensor, before: Evaluated | None, now: Evaluated, then: Level) -> Tensor:
    """UniP from `now` to `then`: of order 2 with an answer from before, of order 1 without."""
    towards_BCHW = now[1]
    if before is not None:
        towards_BCHW = towards_BCHW + half_ahead(before[0], now[0], then) * (now[1] - before[1])
    kept, gained = weights(now[0], then)
    return kept * z_BCHW + gained * towards_BCHW


def correct(z_BCHW: Tensor, before: Evaluated | None, now: Evaluated, then: Evaluated) -> Tensor:
    """UniC: the step from `now` again, from the same z, with the answer found where it arrived.

    Adds rho_1 (m_before - m_now) / r + rho_2 (m_then - m_now) with r = -h_last / h. The rho solve rho_1 + rho_2 = b_1 and
    r rho_1 + rho_2 = b_2, with b_k = k! phi_{k+1}(-h) (-h) / (e^-h - 1); with one answer alone rho_2 = 1/2.
    """
    kept, gained = weights(now[0], then[0])
    h = half_log_snr(then[0]) - half_log_snr(now[0])
    if before is None:
        return kept * z_BCHW + gained * (now[1] + then[1]) / 2
    whole = math.expm1(-h)
    first = -whole / h - 1  # phi_2(-h) (-h)
    b_1, b_2 = first / whole, 2 * (-first / h - 0.5) / whole
    r = -(half_log_snr(now[0]) - half_log_snr(before[0])) / h
    rho_1 = (b_1 - b_2) / (1 - r)
    change_BCHW = rho_1 / r * (before[1] - now[1]) + (b_1 - rho_1) * (then[1] - now[1])
    return kept * z_BCHW + gained * (now[1] + change_BCHW)


def weights(now: Level, then: Level) -> tuple[float, float]:
    """sigma' / sigma on z and alpha' (1 - e^-h) on z_0: the exact step where z_0 stands still."""
    return then.sigma / now.sigma, then.alpha - then.sigma * now.alpha / now.sigma


@torch.no_grad()
def unipc(
    denoise: Denoise,
    zT_BCHW: Tensor,
    times: list[int],
    schedule: Schedule,
    cond: Any,
    noise: Noise,
    callback: Callback | None = None,
) -> Tensor:
    """From z_T down the list of times; z_0 is not clipped, `noise` is never called.

    The last step is of order 1 and not corrected, as in diffusers; at the data it is exact for the given prediction. A step whose
    result the callback changed (known pixels) is not corrected either: UniC takes the step again, from before the change.
    """
    z_BCHW, steps = zT_BCHW, len(times) - 1
    start_BCHW = zT_BCHW  # of the last step
    evaluated: list[Evaluated] = []
    changed = False  # by the callback, after the last step
    for done, (t, s) in enumerate(pairwise(times), start=1):
        now, then = schedule.at(t), schedule.at(s)
        answer = now, denoise(z_BCHW, at_time(t, z_BCHW), cond).z0
        if evaluated and not changed:
            z_BCHW = correct(start_BCHW, evaluated[-2] if len(evaluated) > 1 else None, evaluated[-1], answer)
        evaluated = [*evaluated[-1:], answer]
        start_BCHW = z_BCHW
        predicted_BCHW = predict(z_BCHW, evaluated[0] if len(evaluated) > 1 and done < steps else None, answer, then)
        z_BCHW = after_step(callback, done, steps, predicted_BCHW)
        changed = z_BCHW is not predicted_BCHW
    return z_BCHW


@dataclass(frozen=True)
class UniPC(Sampler):
    """The options of UniPC; calling it samples. Those of guidance: `GuidanceOptions`.

    Args:
        steps: network evaluations, 1 … T.
        grid: "trailing" (from T-1 to the data) or "official" (the released code's times; samplers/grid.py).

    Raises ConfigError for steps against T when it is called.
    """

    steps: Steps = 20
    grid: Grid = "trailing"

    @property
    def rule(self) -> Rule:
        return unipc
