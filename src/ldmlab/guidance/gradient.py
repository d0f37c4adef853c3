"""Guidance by a gradient: a denoise callable moved along the gradient of a log-probability that another model gives.

    eps' = eps - scale · sigma · ∇ log p        (Dhariwal & Nichol 2021, Algorithm 2)

With z_t = alpha z_0 + sigma eps, z_0' = z_0 + scale · sigma² / alpha · ∇ log p: the mean moves up the slope. (The paper's
Eq. 16 prints a plus; with eps the added noise, the minus is right: docs/paper.md#guidance.)

The true gradient vanishes with alpha, because z_T is independent of z_0; a learnt one does not quite vanish, and sigma² / alpha magnifies
what is left without bound where a schedule ends at alpha = 0 (cosine: 2e4). Hence the intervals of the options.

Shape letters: B batch, C channels, H W space, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Schedule

Classifier = Callable[[Tensor, Tensor], Tensor]  # (z_t [B, C, H, W], t_B) → logits [B, K]
LogP = Callable[[Tensor], Tensor]  # z_0 [B, C, H, W] → log-probability of each image [B], up to a constant


def pushed(predicted: Prediction, gradient_BCHW: Tensor, scale: float, t_B: Tensor, schedule: Schedule) -> Prediction:
    """The prediction moved up a slope: eps - scale · sigma · gradient, and the z_0 of the same z_t."""
    alpha_B, sigma_B = (level(t_B, gradient_BCHW.dtype) for level in (schedule.alpha, schedule.sigma))
    push_BCHW = torch.where(alpha_B > 0, scale * sigma_B, 0.0)[:, None, None, None] * gradient_BCHW
    ratio_B111 = (sigma_B / torch.where(alpha_B > 0, alpha_B, 1.0))[:, None, None, None]
    return Prediction(predicted.z0 + ratio_B111 * push_BCHW, predicted.eps - push_BCHW)
