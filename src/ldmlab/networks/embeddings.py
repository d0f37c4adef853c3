"""Sinusoidal embedding of the diffusion time.

Shape letters: B batch, D features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoidal(t_B: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Embed times as cosines and sines of geometrically spaced frequencies, float32 [B, dim].

    The cosine half comes first, and frequency i is max_period^(-i / (dim // 2)), as in `timestep_embedding` of
    CompVis/latent-diffusion ldm/modules/diffusionmodules/util.py (the transformer's own order is sine first).
    `t_B` may be whole or fractional; an odd `dim` gets one zero at the end.
    """
    half = dim // 2
    frequency_D = torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=t_B.device))
    angle_BD = t_B.float()[:, None] * frequency_D
    embedding_BD = torch.cat([angle_BD.cos(), angle_BD.sin()], dim=1)
    return F.pad(embedding_BD, (0, dim % 2))
