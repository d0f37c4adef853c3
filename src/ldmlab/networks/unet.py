"""The denoising UNet of the paper: ADM's "ablated UNet", with a spatial transformer wherever tokens are given.

Source: CompVis/latent-diffusion openaimodel.py, UNetModel (docs/paper.md#the-unet). Module names and weight shapes are the
official ones, so that importing a checkpoint is renaming only.

Shape letters: B batch, C channels, H W space, L tokens, D features.
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from ldmlab.errors import ConfigError
from ldmlab.networks.attention import SelfAttention, SpatialTransformer, prepared
from ldmlab.networks.blocks import (
    GROUPS,
    OFFICIAL,
    Downsample,
    Grouping,
    InputConv,
    Norm,
    Pieces,
    ResBlock,
    Upsample,
    zeroed,
)
from ldmlab.networks.embeddings import sinusoidal
from ldmlab.networks.kv_cache import Condition, tokens_of
from ldmlab.networks.sizes import any_depth, multiples
from ldmlab.ranges import Channels, Depth, Given, Multipliers, Share, Sizes, Width


class UNet(nn.Module):
    """z_t, t and a condition → an image-like prediction of the same size.

    Args (those of the config; paths in messages are `ldm.network.*`):
        width: channels of the first convolution and a quarter of the time embedding's features.
        multipliers: each level's channels over `width`; n levels halve the latent n-1 times.
        level_channels: each level's channels themselves, in the place of width · multipliers (what `ldm.budget` chooses).
        norm_groups: groups of every GroupNorm, which must divide the channels of every level: 32 in published networks, or
        norm_group_channels: channels of each group, whatever the width; exactly one of the two.
        blocks: residual blocks per level on the way down ("depth" in the paper's tables); one more on the way up.
        attention_factors: levels with attention, as down-sampling factors *of the latent*: 1 is full size, 2 half. (The
            official key `attention_resolutions` means the same; the paper's tables print sizes.) The middle block
            always has attention.
        attention_sizes: the same as sizes of the feature map; give exactly one of the two.
        heads: heads of each attention, or
        head_channels: channels of each head; exactly one of the two. Weight shapes do not depend on it (docs/paper.md#heads).
        transformer_depth: blocks in each spatial transformer; used only with tokens.
        dropout: in residual blocks, before the last convolution.
        scale_shift_norm: the time embedding scales and shifts the second norm instead of being added.
        resblock_updown: residual blocks change the size, instead of a strided or repeating convolution.
        checkpointing: keep the input of each block alone for the backward pass and compute the rest again: less memory,
            about a third more time, the same result.
        vector_mlp: a vector condition goes through a two-layer MLP; False: it has the time embedding's 4 · width features and is
            added as it is, as in ADM and diffusers.
    Given by the assembly, never options:
        in_channels: latent channels plus those of a concatenated condition; out_channels: latent channels.
        context_dim: features of a token; None builds plain self-attention and takes no tokens.
        vector_dim: features of a vector condition, added to the time embedding; None for none.
        latent_size: height of the latent; needed by attention_sizes only.

    Raises ConfigError for options that do not fit each other.
    """

    def __init__(
        self,
        in_channels: Annotated[int, Given],
        out_channels: Annotated[int, Given],
        width: Width,
        multipliers: Multipliers,
        blocks: Depth,
        attention_factors: Sizes | None = None,
        attention_sizes: Sizes | None = None,
        heads: Depth | None = None,
        head_channels: Width | None = None,
        transformer_depth: Depth = 1,
        dropout: Share = 0.0,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        checkpointing: bool = False,
        level_channels: Channels | None = None,
        norm_groups: Depth | None = GROUPS,
        norm_group_channels: Width | None = None,
        vector_mlp: bool = True,
        context_dim: Annotated[int | None, Given] = None,
        vector_dim: Annotated[int | None, Given] = None,
        latent_size: Annotated[int | None, Given] = None,
    ):
        super().__init__()
        self.grouping = grouping = check_groups(norm_groups, norm_group_channels)
        check_widths(width, multipliers, blocks, grouping)
        levels = check_levels(level_channels, width, multipliers, grouping)
        check_rates(transformer_depth, dropout)
        factors = resolve_factors(attention_factors, attention_sizes, latent_size, levels=len(multipliers))
        check_heads(heads, head_channels, attended(levels, factors))
        self.width = width
        self._width_step = math.lcm(grouping.step, heads or head_channels or 1)
        self.divisor = 2 ** (len(multipliers) - 1)  # height and width of the latent must be multiples of it
        emb_dim = 4 * width

        def res(channels: int, out: int, resample: str = "none") -> nn.Module:
            return ResBlock(channels, out, emb_dim, dropout, scale_shift_norm, resample, grouping)

        def attention(channels: int) -> nn.Module:
            n = heads if heads is not None else channels // (head_channels or channels)
            if context_dim is None:
                return SelfAttention(channels, n, grouping)
            return SpatialTransformer(channels, n, context_dim, transformer_depth, grouping)

        self.time_embed = mlp(width, emb_dim)
        if vector_dim is not None:
            self.vector_embed = mlp(vector_dim, emb_dim) if vector_mlp else as_it_is(vector_dim, emb_dim)

        self.input_blocks, skips = way_down(
            in_channels, width, levels, blocks, factors, res, attention, resblock_updown
        )
        channels = skips[-1]
        self.middle_block = Pieces(res(channels, channels), attention(channels), res(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, own in reversed(list(enumerate(levels))):
            for block in range(blocks + 1):
                pieces = [res(channels + skips.pop(), own)]
                channels = own
                if 2**level in factors:
                    pieces.append(attention(channels))
                if level > 0 and block == blocks:
                    pieces.append(res(channels, channels, "up") if resblock_updown else Upsample(channels))
                self.output_blocks.append(Pieces(*pieces))

        self.out = nn.Sequential(
            Norm(channels, 1e-5, grouping), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))
        )
        self.recompute(checkpointing)

    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Condition) -> Tensor:
        """Prediction [B, out_channels, H, W] at times `t_B` (0 … T-1, whole or fractional).

        Raises ConfigError when H or W is not a multiple of `divisor`.
        """
        self.check_latent(z_BCHW.shape[-2], z_BCHW.shape[-1])
        emb_BD = self.time_embed(sinusoidal(t_B, self.width).to(next(self.time_embed.parameters()).dtype))
        if cond.vector_BD is not None:
            emb_BD = emb_BD + self.vector_embed(cond.vector_BD)
        h_BCHW = z_BCHW if cond.concat_BCHW is None else torch.cat([z_BCHW, cond.concat_BCHW], dim=1)
        tokens, skips = tokens_of(cond), []
        for pieces in self.input_blocks:
            h_BCHW = pieces(h_BCHW, emb_BD, tokens)
            skips.append(h_BCHW)
        h_BCHW = self.middle_block(h_BCHW, emb_BD, tokens)
        for pieces in self.output_blocks:
            h_BCHW = pieces(torch.cat([h_BCHW, skips.pop()], dim=1), emb_BD, tokens)
        return self.out(h_BCHW)

    def prepared(self, cond: Condition) -> Condition:
        """The condition with its tokens read once, for many calls (`attention.prepared`)."""
        return prepared(self, cond)

    def widths(self) -> range:
        """Multiples of the groups of the normalisations and of the heads, or of their channels (`sizes.Resizable`)."""
        return multiples(self._width_step)

    def depths(self) -> range:
        """Residual blocks of a level."""
        return any_depth()

    def check_latent(self, height: int, width: int) -> None:
        """Raise ConfigError unless a latent of this size can be halved at each level."""
        if height % self.divisor or width % self.divisor:
            raise ConfigError(
                f"ldm.network.multipliers has {self.divisor.bit_length()} levels, which need latents whose height "
                f"and width are multiples of {self.divisor}; this latent is {height}x{width}. Change data.resolution (to "
                f"a multiple of f·{self.divisor}), take a smaller f, or use at most {levels_of(height, width)} multipliers."
            )

    def recompute(self, on: bool) -> None:
        """Turn gradient checkpointing on or off: less memory, a second forward pass; results are the same."""
        for pieces in self.modules():
            if isinstance(pieces, Pieces):
                pieces.recompute = on


def way_down(
    in_channels: int,
    width: int,
    levels: list[int],
    blocks: int,
    factors: set[int],
    res: Callable[..., nn.Module],
    attention: Callable[[int], nn.Module],
    resblock_updown: bool,
) -> tuple[nn.ModuleList, list[int]]:
    """The pieces from the input to the smallest feature map, and the channels after each of them.

    width: channels of the first convolution. levels: channels of each level.
    res: (channels, out, resample) → residual block. attention: channels → attention.
    """
    steps = nn.ModuleList([Pieces(InputConv(in_channels, width))])
    channels, after = width, [width]
    for level, own in enumerate(levels):
        for _ in range(blocks):
            pieces = [res(channels, own)]
            channels = own
            if 2**level in factors:
                pieces.append(attention(channels))
            steps.append(Pieces(*pieces))
            after.append(channels)
        if level < len(levels) - 1:
            steps.append(Pieces(res(channels, channels, "down") if resblock_updown else Downsample(channels)))
            after.append(channels)
    return steps, after


def levels_of(height: int, width: int) -> int:
    """Levels of a network that halves a latent of this size at each level but the last."""
    both = math.gcd(height, width)
    return (both & -both).bit_length()


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Linear, SiLU, Linear."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), nn.Linear(outputs, outputs))


def attended(levels: list[int], factors: set[int]) -> list[int]:
    """Channels of the attentions, rising: of the levels with these factors, and of the middle block."""
    return sorted({channels for i, channels in enumerate(levels) if 2**i in factors} | {levels[-1]})


def as_it_is(vector_dim: int, emb_dim: int) -> nn.Module:
    """Nothing between a vector condition and the time embedding; ConfigError unless their widths agree."""
    if vector_dim != emb_dim:
        raise ConfigError(
            f"ldm.network.vector_mlp=false adds the vector to the time embedding as it is, which has {emb_dim} features and the vector "
            f"{vector_dim}. Set cond.conditioner.dim={emb_dim}."
        )
    return nn.Identity()


def check_groups(groups: int | None, channels: int | None) -> Grouping:
    """The grouping that the options describe; ConfigError unless exactly one of them is given."""
    if (groups is None) == (channels is None):
        raise ConfigError(
            f"ldm.network needs exactly one of norm_groups and norm_group_channels; got norm_groups={groups}, "
            f"norm_group_channels={channels}. Write null for the other one."
        )
    return Grouping(groups, channels)


def check_levels(level_channels: list[int] | None, width: int, multipliers: list[int], grouping: Grouping) -> list[int]:
    """Channels of each level: those given, else width · multipliers. ConfigError when those given do not fit."""
    if level_channels is None:
        return [width * multiplier for multiplier in multipliers]
    if len(level_channels) != len(multipliers):
        raise ConfigError(
            f"ldm.network.level_channels={level_channels} has {len(level_channels)} numbers, and ldm.network.multipliers has "
            f"{len(multipliers)} levels. Give one number a level."
        )
    if uneven := [n for n in level_channels if n < 1 or n % grouping.step]:
        raise ConfigError(
            f"ldm.network.level_channels={level_channels}: {uneven} cannot be split for GroupNorm; every number must be a multiple "
            f"of {grouping.step}. Change them, or ldm.network.norm_groups or norm_group_channels."
        )
    return list(level_channels)


def check_widths(
    width: int, multipliers: list[int], blocks: int, grouping: Grouping = OFFICIAL, path: str = "ldm.network"
) -> None:
    """ConfigError unless every level is positive and its channels can be split into groups."""
    step = grouping.step
    if width < 1 or width % step:
        lower = width // step * step
        near = " or ".join(str(w) for w in (lower, lower + step) if w > 0)
        groups = f"the {step} groups" if grouping.channels is None else f"groups of {step} channels"
        raise ConfigError(
            f"{path}.width={width} cannot be split into {groups} of GroupNorm; it must be a multiple of {step}. Set {near}."
        )
    if not multipliers or min(multipliers) < 1:
        raise ConfigError(
            f"{path}.multipliers must be one or more numbers from 1 up; got {multipliers}. Write [1, 2, 4] for three levels."
        )
    if blocks < 1:
        raise ConfigError(f"{path}.blocks must be at least 1; got {blocks}.")


def check_rates(transformer_depth: int, dropout: float) -> None:
    """ConfigError for a depth below 1 or a dropout outside [0, 1)."""
    if transformer_depth < 1:
        raise ConfigError(f"ldm.network.transformer_depth must be at least 1; got {transformer_depth}.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"ldm.network.dropout must be at least 0 and below 1; got {dropout}.")


def resolve_factors(
    factors: list[int] | None,
    sizes: list[int] | None,
    latent_size: int | None,
    levels: int,
    path: str = "ldm.network",
) -> set[int]:
    """Down-sampling factors with attention, from one of factors and sizes; ConfigError when no level has such a one."""
    if (factors is None) == (sizes is None):
        raise ConfigError(
            f"{path} needs exactly one of attention_factors (down-sampling factors of the latent; [] for the "
            f"middle block only) and attention_sizes (sizes of the feature map); got {factors} and {sizes}."
        )
    reached = [2**level for level in range(levels)]
    if factors is not None:
        lost = [f for f in factors if f not in reached]
        if lost:
            raise ConfigError(
                f"{path}.attention_factors={factors}: no level reaches {lost}; the {levels} levels of this "
                f"network have the factors {reached}. These are down-sampling factors of the latent, not sizes (for sizes "
                "use attention_sizes). The official semantic-synthesis configs ask for [32, 16, 8] with three levels and "
                "so get attention in the middle block only: write [] to mean that."
            )
        return set(factors)
    if latent_size is None:
        raise ConfigError(
            f"{path}.attention_sizes needs the latent's size; give attention_factors where it is unknown."
        )
    by_size = {latent_size // f: f for f in reached if latent_size % f == 0}
    lost = [s for s in sizes or [] if s not in by_size]
    if lost:
        raise ConfigError(
            f"{path}.attention_sizes={sizes}: no level has size {lost}; a latent of {latent_size} gives the "
            f"levels {sorted(by_size, reverse=True)}. Change the sizes, or use attention_factors."
        )
    return {by_size[s] for s in sizes or []}


def check_heads(heads: int | None, head_channels: int | None, attended: list[int], path: str = "ldm.network") -> None:
    """ConfigError unless exactly one of the two is given and divides every attended width."""
    if (heads is None) == (head_channels is None):
        raise ConfigError(
            f"{path} needs exactly one of heads and head_channels; got heads={heads}, "
            f"head_channels={head_channels}. Write null for the other one."
        )
    name, n = ("heads", heads) if heads is not None else ("head_channels", head_channels)
    assert n is not None
    uneven = [width for width in attended if n < 1 or width % n]
    if uneven:
        raise ConfigError(
            f"{path}.{name}={n} does not divide the channels of the levels with attention: {uneven}. Set a divisor."
        )
