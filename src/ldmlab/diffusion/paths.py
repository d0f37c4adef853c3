"""Schedules that are usually written otherwise: the straight line of rectified flow, and EDM's list of sigmas.

Both are kept in the form of schedules.py, z divided by its scale √(a² + s²): a sampler needs the ratio s / a alone.
"""

from typing import Annotated

import torch

from ldmlab.diffusion.schedules import Schedule, check_steps
from ldmlab.errors import ConfigError
from ldmlab.ranges import Range, Steps

Sigma = Annotated[float, Range(at_least=1e-6, at_most=1e6)]


class Flow(Schedule):
    """The straight line z = (1 - τ) z_0 + τ eps (Liu et al. 2209.03003; SD3, 2403.03206, §2), at τ = 1/T, 2/T … 1.

    Whole time t is τ = (t + 1) / T, so that -1 is the data and T-1 is noise alone. Divided by √((1-τ)² + τ²).
    """

    def __init__(self, T: Steps = 1000):
        check_steps(T)
        tau_T = torch.arange(1, T + 1, dtype=torch.float64) / T
        super().__init__((1 - tau_T) ** 2 / ((1 - tau_T) ** 2 + tau_T**2))


class Karras(Schedule):
    """z = z_0 + s eps with s^(1/rho) rising linearly from sigma_min to sigma_max (Karras et al. 2206.00364, eq. 5).

    Divided by √(1 + s²). A sampler on the "trailing" grid visits the sigmas of eq. 5 for its own number of steps, up to
    rounding to whole times. Raises ConfigError unless 0 < sigma_min < sigma_max and rho > 0.
    """

    def __init__(
        self,
        T: Steps = 1000,
        sigma_min: Sigma = 0.002,
        sigma_max: Sigma = 80.0,
        rho: Annotated[float, Range(above=0, at_most=1_000)] = 7.0,
    ):
        check_steps(T)
        if not 0 < sigma_min < sigma_max or rho <= 0:
            raise ConfigError(
                f"objective.schedule needs 0 < sigma_min < sigma_max and rho > 0; got sigma_min={sigma_min}, "
                f"sigma_max={sigma_max}, rho={rho}."
            )
        sigma_T = torch.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T, dtype=torch.float64) ** rho
        super().__init__(1 / (1 + sigma_T**2))
