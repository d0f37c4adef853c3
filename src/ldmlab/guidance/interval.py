"""Guidance within an interval of noise-to-signal ratios only.

Shape letters: B batch, C channels, H W space.
"""

from typing import Any

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Schedule
from ldmlab.samplers.base import time_of


def limited(inside: Denoise, outside: Denoise, interval: list[float], schedule: Schedule) -> Denoise:
    """`inside` where low < sigma / alpha <= high, else `outside` (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    Where all images of a call are on one side only that callable runs: outside the interval guidance costs nothing.
    (Samplers say the time of all images on the host; for a tensor of times finding out waits for the device, once a call.)
    """
    low, high = interval

    def limited_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        t = time_of(t_B)
        times_B = t_B.cpu() if t is None else torch.tensor([t])
        alpha_B, sigma_B = schedule.alpha(times_B, torch.float64), schedule.sigma(times_B, torch.float64)
        within_B = (sigma_B > low * alpha_B) & (sigma_B <= high * alpha_B)
        if within_B.all():
            return inside(zt_BCHW, t_B, cond)
        if not within_B.any():
            return outside(zt_BCHW, t_B, cond)
        within_B111 = within_B.to(t_B.device)[:, None, None, None]
        pairs = zip(inside(zt_BCHW, t_B, cond), outside(zt_BCHW, t_B, cond), strict=True)
        return Prediction(*(torch.where(within_B111, a, b) for a, b in pairs))

    return limited_denoise


def within(inside: Denoise, outside: Denoise, interval: list[float] | None, schedule: Schedule) -> Denoise:
    """`inside` everywhere when there is no interval, else `limited`."""
    return inside if interval is None else limited(inside, outside, interval, schedule)


def share_within(interval: list[float] | None, schedule: Schedule, times: list[int]) -> float:
    """The share of these times, 0 … 1, at which guidance with this interval acts."""
    if interval is None:
        return 1.0
    levels = [schedule.at(t) for t in times]
    return sum(interval[0] * alpha < sigma <= interval[1] * alpha for alpha, sigma in levels) / len(levels)
