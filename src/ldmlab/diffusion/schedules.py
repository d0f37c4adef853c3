"""Noise schedules as tables: z_t = alpha(t) z_0 + sigma(t) eps, with alpha² + sigma² = 1.

Times are whole: t = 0 … T-1 are the noisy ones, and t = -1 is the data itself (alpha 1, sigma 0). Tables are float64.
Any path from data to noise, z = a z_0 + s eps, is in here divided by √(a² + s²), so that samplers meet one kind of
schedule; targets.py says what the network receives. alpha may be 0 at T-1 and nowhere else.

Shape letters: B batch, C channels, H W space, T steps.
"""

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.ranges import Range, Steps

Beta = Annotated[float, Range(above=0, below=1)]


class Level(NamedTuple):
    """Signal and noise of one time, float64 numbers."""

    alpha: float
    sigma: float


class DeviceTable:
    """Numbers that are looked up on any device, in any type: rounded and sent once for each, since to send them in every step
    would wait for the device, and double precision is slow there."""

    def __init__(self, values: Tensor):
        self.values = values  # float64, on the CPU
        self._kept: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """All of them."""
        if (device, dtype) not in self._kept:
            self._kept[device, dtype] = self.values.to(dtype).to(device)
        return self._kept[device, dtype]


class Schedule:
    """A discrete schedule from its `alpha_bar_T` = alpha², float64, falling; other code calls it `alphas_cumprod`."""

    def __init__(self, alpha_bar_T: Tensor):
        self.T = len(alpha_bar_T)
        self.alpha_bar_T = alpha_bar_T.double()
        ends = torch.ones(1, dtype=torch.float64)
        alpha_bar = torch.cat([ends, self.alpha_bar_T])  # place t + 1 holds time t, so that place 0 is the data
        self._alpha, self._sigma = DeviceTable(alpha_bar.sqrt()), DeviceTable((1 - alpha_bar).sqrt())

    def alpha(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Signal at times -1 … T-1, [B], on the device of `t_B`."""
        return self._alpha.on(t_B.device, dtype)[t_B + 1]

    def sigma(self, t_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Noise at times -1 … T-1, [B], on the device of `t_B`."""
        return self._sigma.on(t_B.device, dtype)[t_B + 1]

    def levels(self) -> tuple[Tensor, Tensor]:
        """(alpha_T, sigma_T) of the noisy times 0 … T-1, float64, on the CPU."""
        return self._alpha.values[1:], self._sigma.values[1:]

    @property
    def ends_without_signal(self) -> bool:
        """Whether alpha is 0 at T-1 (zero terminal SNR): z_T is noise alone."""
        return float(self.alpha_bar_T[-1]) == 0

    def at(self, t: int) -> Level:
        """Signal and noise of one time, -1 … T-1, in float64."""
        if not -1 <= t < self.T:
            raise ValueError(f"time {t} is outside -1 … {self.T - 1}")
        return Level(float(self._alpha.values[t + 1]), float(self._sigma.values[t + 1]))

    def zt(self, z0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noisy latent, in the dtype of `z0_BCHW`."""
        alpha_B111 = self.alpha(t_B, z0_BCHW.dtype)[:, None, None, None]
        sigma_B111 = self.sigma(t_B, z0_BCHW.dtype)[:, None, None, None]
        return alpha_B111 * z0_BCHW + sigma_B111 * eps_BCHW


def of_betas(beta_T: Tensor) -> Tensor:
    """alpha_bar_T from beta_t = 1 - alpha_t² / alpha_{t-1}² (Ho et al. 2020; the paper's App. B)."""
    return torch.cumprod(1 - beta_T.double(), dim=0)


class LinearSqrtBeta(Schedule):
    """Betas that are the squares of a linear ramp between √beta_start and √beta_end: the paper's schedule.

    The official code calls it "linear" (make_beta_schedule of ldm/modules/diffusionmodules/util.py;
    docs/paper.md#noise-schedule), diffusers "scaled_linear". Raises ConfigError unless 0 < beta_start <= beta_end < 1.
    """

    def __init__(self, T: Steps = 1000, beta_start: Beta = 0.0015, beta_end: Beta = 0.0195):
        check_steps(T)
        check_betas(beta_start, beta_end)
        super().__init__(of_betas(torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2))


class Linear(Schedule):
    """Betas that rise linearly (Ho et al. 2020, §4). The official LDM code calls this "sqrt_linear".

    Raises ConfigError unless 0 < beta_start <= beta_end < 1.
    """

    def __init__(self, T: Steps = 1000, beta_start: Beta = 1e-4, beta_end: Beta = 0.02):
        check_steps(T)
        check_betas(beta_start, beta_end)
        super().__init__(of_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64)))


class Cosine(Schedule):
    """alpha_bar(t) = cos²((t/T + s) / (1 + s) · π/2), its betas cut at `max_beta` (Nichol & Dhariwal 2021, eq. 17).

    Raises ConfigError unless s >= 0 and 0 < max_beta < 1.
    """

    def __init__(
        self, T: Steps = 1000, s: Annotated[float, Range(at_least=0, at_most=1)] = 0.008, max_beta: Beta = 0.999
    ):
        check_steps(T)
        if s < 0 or not 0 < max_beta < 1:
            raise ConfigError(f"objective.schedule needs s >= 0 and 0 < max_beta < 1; got s={s}, max_beta={max_beta}.")
        alpha_bar = [math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in range(T + 1)]
        beta_T = [min(1 - alpha_bar[t + 1] / alpha_bar[t], max_beta) for t in range(T)]
        super().__init__(of_betas(torch.tensor(beta_T, dtype=torch.float64)))


def check_steps(T: int) -> None:
    """ConfigError unless there is at least one noisy time."""
    if T < 1:
        raise ConfigError(f"objective.schedule.T must be at least 1; got {T}.")


def check_betas(beta_start: float, beta_end: float) -> None:
    """ConfigError unless they are two probabilities in order."""
    if not 0 < beta_start <= beta_end < 1:
        raise ConfigError(
            f"objective.schedule needs 0 < beta_start <= beta_end < 1; got beta_start={beta_start}, "
            f"beta_end={beta_end}."
        )
