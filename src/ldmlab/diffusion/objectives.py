"""What the network is trained to predict, how far it is off, and what its output says about z_0 and eps.

With z_t = alpha z_0 + sigma eps and v = alpha eps - sigma z_0 (Salimans & Ho 2022), each of eps, v and z_0 gives the
other two.

Shape letters: B batch, C channels, H W space.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldmlab.diffusion.schedules import Schedule


class Prediction(NamedTuple):
    """What a denoiser believes of z_t = alpha z0 + sigma eps: the clean latent and the noise, both [B, C, H, W]."""

    z0: Tensor
    eps: Tensor


class Objective:
    """Target, schedule and distance; the weight is 1 for each t ("simple", Ho et al. 2020, eq. 14; the paper's eq. 2
    and 3).

    Args:
        target: "eps" (the paper), "v" or "z0".
        schedule: alpha and sigma of t.
        loss: "l2" (mean squared error) or "l1" (mean absolute error; churches, inpainting and layout models, D11).
    """

    def __init__(self, target: Literal["eps", "v", "z0"], schedule: Schedule, loss: Literal["l2", "l1"] = "l2"):
        self.target = target
        self.schedule = schedule
        self.distance = loss

    def t(self, u_B: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) → whole times 0 … T-1, uniformly distributed."""
        return (u_B * self.schedule.T).long().clamp(max=self.schedule.T - 1)

    def target_of(self, z0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the network should answer for z_t."""
        if self.target == "eps":
            return eps_BCHW
        if self.target == "z0":
            return z0_BCHW
        alpha_B111, sigma_B111 = self._levels(t_B, z0_BCHW.dtype)
        return alpha_B111 * eps_BCHW - sigma_B111 * z0_BCHW

    def loss(self, out_BCHW: Tensor, z0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Distance of the network's answer to its target, mean over C, H, W; [B], float32 or wider."""
        error_BCHW = out_BCHW.to(z0_BCHW.dtype) - self.target_of(z0_BCHW, eps_BCHW, t_B)
        distance_BCHW = error_BCHW.square() if self.distance == "l2" else error_BCHW.abs()
        return distance_BCHW.mean(dim=(1, 2, 3))

    def prediction(self, out_BCHW: Tensor, zt_BCHW: Tensor, t_B: Tensor) -> Prediction:
        """Clean latent and noise from the network's answer, in the dtype of z_t; nothing is clipped."""
        out_BCHW = out_BCHW.to(zt_BCHW.dtype)
        alpha_B111, sigma_B111 = self._levels(t_B, zt_BCHW.dtype)
        if self.target == "eps":
            return Prediction((zt_BCHW - sigma_B111 * out_BCHW) / alpha_B111, out_BCHW)
        if self.target == "z0":
            return Prediction(out_BCHW, (zt_BCHW - alpha_B111 * out_BCHW) / sigma_B111)
        return Prediction(alpha_B111 * zt_BCHW - sigma_B111 * out_BCHW, sigma_B111 * zt_BCHW + alpha_B111 * out_BCHW)

    def _levels(self, t_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        alpha_B, sigma_B = self.schedule.alpha(t_B, dtype), self.schedule.sigma(t_B, dtype)
        return alpha_B[:, None, None, None], sigma_B[:, None, None, None]
