"""A classifier of noisy latents: the encoder half of the ADM UNet, with the time embedding, and a pool in the place of the
decoder (Dhariwal & Nichol 2021, §4 and App. H; guided-diffusion unet.py, EncoderUNetModel). LDM-8-G's is of this kind; its size
is not published (docs/paper.md#guidance).

Shape letters: B batch, C channels, H W space, L positions, N heads, D features, K classes.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ldmlab.errors import ConfigError
from ldmlab.networks.attention import SelfAttention, attend
from ldmlab.networks.blocks import Norm, Pieces, ResBlock, zeroed
from ldmlab.networks.embeddings import sinusoidal
from ldmlab.networks.unet import attended, check_heads, check_widths, levels_of, mlp, resolve_factors, way_down
from ldmlab.ranges import Depth, Given, Multipliers, Share, Sizes, Width

PATH = "guidance.classifier.network"  # of the options, in messages


class NoisyClassifier(nn.Module):
    """z_t and t → logits over classes.

    Args (those of the config; `UNet` has them too):
        width, multipliers, blocks, attention_factors, heads or head_channels, dropout, scale_shift_norm, resblock_updown.
        pool: "attention" (a query of the mean of all positions to each of them, CLIP's way; ADM's choice) or "mean".
    Given by the assembly, never options:
        in_channels: latent channels; n_classes; latent_size: height of the latent, to which pool=attention is bound.

    Raises ConfigError for options that do not fit each other or the latent.
    """

    def __init__(
        self,
        in_channels: Annotated[int, Given],
        n_classes: Annotated[int, Given],
        latent_size: Annotated[int, Given],
        width: Width,
        multipliers: Multipliers,
        blocks: Depth,
        attention_factors: Sizes,
        heads: Depth | None = None,
        head_channels: Width | None = None,
        dropout: Share = 0.0,
        scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        pool: Literal["attention", "mean"] = "attention",
    ):
        super().__init__()
        check_widths(width, multipliers, blocks, path=PATH)
        if not 0 <= dropout < 1:
            raise ConfigError(f"{PATH}.dropout must be at least 0 and below 1; got {dropout}.")
        factors = resolve_factors(attention_factors, None, latent_size, len(multipliers), PATH)
        levels = [width * multiplier for multiplier in multipliers]
        check_heads(heads, head_channels, attended(levels, factors), PATH)
        divisor = 2 ** (len(multipliers) - 1)
        if latent_size % divisor:
            raise ConfigError(
                f"{PATH}.multipliers has {len(multipliers)} levels, which need latents whose height is a multiple of {divisor}; "
                f"this latent is {latent_size}x{latent_size}. Use at most {levels_of(latent_size, latent_size)} multipliers."
            )
        self.width, self.n_classes = width, n_classes
        emb_dim = 4 * width

        def res(channels: int, out: int, resample: str = "none") -> nn.Module:
            return ResBlock(channels, out, emb_dim, dropout, scale_shift_norm, resample)

        def heads_of(channels: int) -> int:
            return heads if heads is not None else channels // (head_channels or channels)

        def attention(channels: int) -> nn.Module:
            return SelfAttention(channels, heads_of(channels))

        self.time_embed = mlp(width, emb_dim)
        self.input_blocks, after = way_down(
            in_channels, width, levels, blocks, factors, res, attention, resblock_updown
        )
        channels = after[-1]
        self.middle_block = Pieces(res(channels, channels), attention(channels), res(channels, channels))
        last = (
            AttentionPool(channels, heads_of(channels), n_classes, latent_size // divisor)
            if pool == "attention"
            else MeanPool(channels, n_classes)
        )
        self.out = nn.Sequential(Norm(channels, eps=1e-5), nn.SiLU(), last)

    def forward(self, zt_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Logits [B, K] of noisy latents of the size it was built for, at times `t_B` (0 … T-1)."""
        emb_BD = self.time_embed(sinusoidal(t_B, self.width).to(next(self.time_embed.parameters()).dtype))
        h_BCHW = zt_BCHW
        for pieces in (*self.input_blocks, self.middle_block):
            h_BCHW = pieces(h_BCHW, emb_BD, None)
        return self.out(h_BCHW)


class AttentionPool(nn.Module):
    """One attention from the mean of all positions to them and to itself, over learned places; its output is the logits
    (Radford et al. 2021; guided-diffusion AttentionPool2d, its names and weight shapes)."""

    def __init__(self, channels: int, heads: int, out: int, size: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out, 1)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """[B, C, size, size] → [B, out]."""
        x_BCL = h_BCHW.flatten(2)
        x_BCL = torch.cat([x_BCL.mean(dim=2, keepdim=True), x_BCL], dim=2) + self.positional_embedding
        q_BNLD, k_BNLD, v_BNLD = (
            self.qkv_proj(x_BCL).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        )  # all q first, then k, then v
        pooled_BC = attend(q_BNLD[:, :, :1], k_BNLD, v_BNLD).flatten(1)
        return self.c_proj(pooled_BC[:, :, None])[:, :, 0]


class MeanPool(nn.Module):
    """The mean over positions, then a linear map that starts at zero (guided-diffusion pool="adaptive")."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.linear = zeroed(nn.Linear(channels, out))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, out]."""
        return self.linear(h_BCHW.mean(dim=(2, 3)))
