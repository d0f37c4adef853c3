"""Sinusoidal embeddings of the diffusion time and of positions.

Shape letters: B batch, D features, H W space, L positions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoidal(t_B: Tensor, dim: int, max_period: float = 10_000.0, shift: int = 0) -> Tensor:
    """Embed times as cosines and sines of geometrically spaced frequencies, float32 [B, dim].

    The cosine half comes first, and frequency i is max_period^(-i / (dim // 2)), as in `timestep_embedding` of
    CompVis/latent-diffusion ldm/modules/diffusionmodules/util.py (the transformer's own order is sine first).
    `t_B` may be whole or fractional; an odd `dim` gets one zero at the end. shift: frequency i is max_period^(-i / (dim // 2 - shift)).
    """
    half = dim // 2
    frequency_D = torch.exp(
        -math.log(max_period) / (half - shift) * torch.arange(half, dtype=torch.float32, device=t_B.device)
    )
    angle_BD = t_B.float()[:, None] * frequency_D
    embedding_BD = torch.cat([angle_BD.cos(), angle_BD.sin()], dim=1)
    return F.pad(embedding_BD, (0, dim % 2))


def sincos_positions(height: int, width: int, dim: int, device: torch.device | str) -> Tensor:
    """Fixed features of the positions of a grid, row by row, float32 [height·width, dim].

    Half of the features are of the column and half of the row, in this order; each is the sines and then the cosines of
    the coordinate times 10000^(-4i / dim), i = 0 … dim/4 - 1 (`get_2d_sincos_pos_embed` of facebookresearch/mae, which
    DiT uses). `dim` must be a multiple of 4.
    """
    quarter = dim // 4
    frequency_D = torch.exp(-math.log(10_000.0) / quarter * torch.arange(quarter, dtype=torch.float32, device=device))

    def embed(length: int) -> Tensor:
        angle_LD = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency_D
        return torch.cat([angle_LD.sin(), angle_LD.cos()], dim=1)

    column_HWD = embed(width)[None].expand(height, -1, -1)
    row_HWD = embed(height)[:, None].expand(-1, width, -1)
    return torch.cat([column_HWD, row_HWD], dim=2).flatten(0, 1)
