"""Averages of weights whose length is chosen after training (Karras et al. 2312.02696, §3).

A power-function average weighs the weights of time τ by τ^gamma: its length grows with training, and it is named by its
relative width (standard deviation of that profile over training time). A few stored averages span many other
profiles: the wanted one is projected on them (§3.2, Algorithm 3), and the same combination is taken of the weights.
Unit of time: anything that counts training evenly (steps, images); only ratios matter.

Shape letters: K stored averages.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.errors import ConfigError
from ldmlab.training.ema import EMA

WIDEST = 0.28  # the profile τ^0, the plain mean of the whole training, has 1 / √12 = 0.289


def gamma_of(width: float, option: str = "width") -> float:
    """The exponent of a relative width: width² = (gamma + 1) / ((gamma + 2)² (gamma + 3)) (Algorithm 2).

    Raises ConfigError, naming `option`, unless 0 < width <= 0.28.
    """
    if not 0 < width <= WIDEST:
        raise ConfigError(f"{option} must be greater than 0 and at most {WIDEST} of the training; got {width}.")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerEMA(EMA):
    """The power-function average, fp32; after step n it is Σ_i (i^(gamma+1) - (i-1)^(gamma+1)) / n^(gamma+1) · weight_i.

    That is the profile integrated over each step, so nothing of the initial weights is left after step 1.
    """

    def __init__(self, module: nn.Module, width: float):
        super().__init__(module, decay=0.0)
        self.gamma = gamma_of(width, "ldm.power_ema")

    @torch.no_grad()
    def update(self, step: int) -> None:
        self._towards(1 - (1 - 1 / step) ** (self.gamma + 1))  # eq. 3


@dataclass(frozen=True)
class Profile:
    """p(τ) = (gamma + 1) τ^gamma / time^(gamma + 1) for τ up to `time`: what an average stored at `time` has seen."""

    time: float
    gamma: float

    def dot(self, other: "Profile") -> float:
        """∫ p q dτ, in closed form (Algorithm 3)."""
        first, last = (self, other) if self.time < other.time else (other, self)
        scale = (first.gamma + 1) * (last.gamma + 1) / (first.gamma + last.gamma + 1)
        return scale * math.exp(last.gamma * math.log(first.time / last.time)) / last.time


@dataclass(frozen=True)
class Fitted:
    """A profile as a combination of stored ones: coefficients, and the relative L2 distance to what was wanted."""

    coefficients: list[float]
    error: float


def project(stored: Sequence[Profile], wanted: Profile) -> Fitted:
    """Least squares over profiles: the combination of `stored` nearest to `wanted` whose coefficients sum to 1.

    Algorithm 3 has no such constraint and does not need it, for its networks normalise their weights. Ours do not: without
    it, weights that never moved would come back scaled.
    """
    gram_KK = np.array([[a.dot(b) for b in stored] for a in stored])
    aim_K = np.array([a.dot(wanted) for a in stored])
    scale_K = np.sqrt(np.diag(gram_KK))  # unit profiles: the conditioning does not depend on their times
    ones_K = scale_K.min() / scale_K
    system = np.block([[gram_KK / np.outer(scale_K, scale_K), ones_K[:, None]], [ones_K[None], np.zeros((1, 1))]])
    x_K = np.linalg.lstsq(system, np.append(aim_K / scale_K, scale_K.min()), rcond=1e-13)[0][:-1] / scale_K  # Lagrange
    left = 1 - (2 * x_K @ aim_K - x_K @ gram_KK @ x_K) / wanted.dot(wanted)
    return Fitted(x_K.tolist(), math.sqrt(max(left, 0.0)))


def combine(coefficients: Sequence[float], loads: Sequence[Callable[[], dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Σ coefficient · state over stored states, summed in float64, one loaded at a time; in the dtypes of the last.

    Tensors that are not floating point are those of the last.
    """
    total: dict[str, Tensor] = {}
    for coefficient, load in zip(coefficients, loads, strict=True):
        state = load()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                before = total.get(name, torch.zeros((), dtype=torch.float64))
                total[name] = before + coefficient * tensor.double()
            else:
                total[name] = tensor
    return {name: total[name].to(tensor.dtype) for name, tensor in state.items()}
