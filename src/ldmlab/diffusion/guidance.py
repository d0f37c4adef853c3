"""Guidance: each function takes a denoise callable and returns one.

Shape letters: B batch, C channels, H W space.
"""

from typing import Any

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.errors import ConfigError


def guided(denoise: Denoise, scale: float, null: Any) -> Denoise:
    """Classifier-free guidance: eps = eps_null + scale · (eps_cond - eps_null) (Ho & Salimans 2022 with scale = 1 + w).

    Both halves go through the network in one batch of 2B, the null half second. Scale 1 returns `denoise` itself, 0 is
    the unconditional model. z0 follows from eps linearly at fixed z_t, so the same rule applies to it.

    Args:
        denoise: the callable to guide.
        scale: at least 0 (`sampler.guidance`).
        null: the condition of "nothing asked" (`Cond`), for as many images as will be sampled at once.

    Raises ConfigError for a negative scale, or when there is no condition to guide with.
    """
    if scale < 0:
        raise ConfigError(f"sampler.guidance must be at least 0 (1 is no guidance); got {scale}.")
    if scale == 1:
        return denoise
    if null.empty:
        raise ConfigError(
            f"sampler.guidance={scale} needs a condition to guide with, and this denoiser has none (cond=none). "
            "Use sampler.guidance=1, or train with a condition, for instance cond=class_label."
        )

    def guided_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        both = denoise(torch.cat([zt_BCHW, zt_BCHW]), torch.cat([t_B, t_B]), cond.cat(null))
        (z0_c, z0_u), (eps_c, eps_u) = both.z0.chunk(2), both.eps.chunk(2)
        return Prediction(z0_u + scale * (z0_c - z0_u), eps_u + scale * (eps_c - eps_u))

    return guided_denoise
