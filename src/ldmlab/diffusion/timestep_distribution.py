"""Which noise levels training visits how often: from a uniform number to a whole time, never falling.

A distribution is a table of T - 1 numbers, made once; a time is found in it by comparisons alone, so that it is the same time on
every device.

Shape letters: B batch.
"""

from typing import Annotated

import torch
from torch import Tensor

from ldmlab.diffusion.schedules import Schedule
from ldmlab.errors import ConfigError
from ldmlab.ranges import Range

Mean = Annotated[float, Range(at_least=-50, at_most=50)]
Spread = Annotated[float, Range(above=0, at_most=50)]


class TimestepDistribution:
    """A distribution of t by its distribution function, so that evenly spread numbers give evenly spread times."""

    def edges(self, schedule: Schedule) -> Tensor:
        """The probability of a time before 1 … T-1, float64 [T - 1], never falling."""
        raise NotImplementedError

    def t(self, u_B: Tensor, schedule: Schedule) -> Tensor:
        """Numbers in [0, 1) → whole times 0 … T-1, int64; a larger number never gives an earlier time."""
        return torch.searchsorted(self.edges(schedule).to(u_B), u_B, right=True)


class Uniform(TimestepDistribution):
    """Each whole time as often (Ho et al. 2020)."""

    def edges(self, schedule: Schedule) -> Tensor:
        return torch.arange(1, schedule.T, dtype=torch.float64) / schedule.T


class LogitNormal(TimestepDistribution):
    """τ = sigmoid(mean + std · normal) and t = ⌊T τ⌋ (SD3, 2403.03206, eq. 19): the middle of the way most often.

    Raises ConfigError unless std > 0.
    """

    def __init__(self, mean: Mean = 0.0, std: Spread = 1.0):
        check_std(std)
        self.mean = mean
        self.std = std

    def edges(self, schedule: Schedule) -> Tensor:
        tau_T = torch.arange(1, schedule.T, dtype=torch.float64) / schedule.T
        return torch.special.ndtr((torch.logit(tau_T) - self.mean) / self.std)


class LogNormal(TimestepDistribution):
    """ln(sigma / alpha) = mean + std · normal (EDM, 2206.00364, Table 1: P_mean, P_std), at the nearest whole time.

    What lies beyond the schedule's ends goes to the ends. Raises ConfigError unless std > 0.
    """

    def __init__(self, mean: Mean = -1.2, std: Spread = 1.2):
        check_std(std)
        self.mean = mean
        self.std = std

    def edges(self, schedule: Schedule) -> Tensor:
        alpha_T, sigma_T = schedule.levels()
        log_T = (sigma_T / alpha_T).log().cpu()
        return torch.special.ndtr(((log_T[1:] + log_T[:-1]) / 2 - self.mean) / self.std)


def check_std(std: float) -> None:
    """ConfigError for a spread that is none."""
    if not std > 0:
        raise ConfigError(f"objective.times.std must be greater than 0; got {std}.")
