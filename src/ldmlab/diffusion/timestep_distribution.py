"""Which noise levels training visits how often: from a uniform number to a whole time, never falling.

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


class Times:
    """A distribution of t by its quantiles, so that evenly spread numbers give evenly spread times."""

    def t(self, u_B: Tensor, schedule: Schedule) -> Tensor:
        """Numbers in [0, 1) → whole times 0 … T-1, int64; a larger number never gives an earlier time."""
        raise NotImplementedError


class Uniform(Times):
    """Each whole time as often (Ho et al. 2020)."""

    def t(self, u_B: Tensor, schedule: Schedule) -> Tensor:
        return (u_B * schedule.T).long().clamp(max=schedule.T - 1)


class LogitNormal(Times):
    """τ = sigmoid(mean + std · normal) and t = ⌊T τ⌋ (SD3, 2403.03206, eq. 19): the middle of the way most often.

    Raises ConfigError unless std > 0.
    """

    def __init__(self, mean: Mean = 0.0, std: Spread = 1.0):
        check_std(std)
        self.mean = mean
        self.std = std

    def t(self, u_B: Tensor, schedule: Schedule) -> Tensor:
        tau_B = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u_B.double()))
        return (tau_B * schedule.T).long().clamp(max=schedule.T - 1)


class LogNormal(Times):
    """ln(sigma / alpha) = mean + std · normal (EDM, 2206.00364, Table 1: P_mean, P_std), at the nearest whole time.

    What lies beyond the schedule's ends goes to the ends. Raises ConfigError unless std > 0.
    """

    def __init__(self, mean: Mean = -1.2, std: Spread = 1.2):
        check_std(std)
        self.mean = mean
        self.std = std

    def t(self, u_B: Tensor, schedule: Schedule) -> Tensor:
        alpha_T, sigma_T = schedule.levels()
        log_T = (sigma_T / alpha_T).log()
        wanted_B = self.mean + self.std * torch.special.ndtri(u_B.double())
        return torch.searchsorted(((log_T[1:] + log_T[:-1]) / 2).to(u_B.device), wanted_B)


def check_std(std: float) -> None:
    """ConfigError for a spread that is none."""
    if not std > 0:
        raise ConfigError(f"objective.times.std must be greater than 0; got {std}.")
