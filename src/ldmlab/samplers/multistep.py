"""What the multistep rules in data prediction (DPM-Solver++, UniPC) share: time measured as lambda = log(alpha / sigma)."""

import math

from ldmlab.samplers.base import Level


def half_log_snr(level: Level) -> float:
    """lambda; minus infinity where nothing is left of the data, infinity at the data."""
    if level.alpha == 0:
        return -math.inf
    return math.inf if level.sigma == 0 else math.log(level.alpha / level.sigma)


def half_ahead(before: Level, now: Level, then: Level) -> float:
    """h / (2 h_last) = 1 / (2 r), by which the last change of the predicted z_0 goes on half a step ahead.

    h is the coming step in lambda, h_last the last one. (Lu et al. 2022b, Algorithm 2; Zhao et al. 2023, UniP-2.)
    """
    h_last = half_log_snr(now) - half_log_snr(before)
    return (half_log_snr(then) - half_log_snr(now)) / (2 * h_last)
