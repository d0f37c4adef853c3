"""The convolutional encoder and decoder of the paper's first stages (CompVis ldm/modules/diffusionmodules/model.py).

Sub-modules carry the official names, so a released checkpoint is ours after dropping the prefix `network.`:
`encoder.down.L.{block.B,attn.B,downsample}`, `encoder.mid.{block_1,attn_1,block_2}`, `decoder.up.L.*` (L = 0 is full
resolution), `quant_conv`, `post_quant_conv`.

Shape letters: B batch, C channels, H W space, N = H·W positions.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldmlab.autoencoders.network import Network
from ldmlab.autoencoders.norm import NormSwish, group_norm
from ldmlab.errors import ConfigError
from ldmlab.ranges import Depth, Given, Multipliers, Sizes, Width


class ConvNetwork(Network):
    """Encoder, decoder and the two 1×1 convolutions around the bottleneck; f = 2^(len(multipliers) − 1).

    c                  latent channels
    channels_in        latent channels → channels the regulariser wants from the encoder (passed by build, not an
                       option)
    width              channels of the first level; level L has width · multipliers[L]
    blocks             residual blocks per encoder level; a decoder level has one more
    attention_factors  down-sampling factors whose levels have attention after each block. The official configs list
                       feature sizes for a 256 px input instead (factor = 256 / size); a factor means the same network
                       at every resolution
    middle_attention   False is the paper's attention-free variant, together with attention_factors=[] (Table 8, dagger)
    checkpointing      compute each block again in the backward pass: less memory, about a third more time, the same
                       result

    Raises ConfigError for values no network can be built from.
    """

    def __init__(
        self,
        c: Width,
        multipliers: Multipliers,
        channels_in: Annotated[Callable[[int], int], Given],
        width: Width = 128,
        blocks: Depth = 2,
        attention_factors: Sizes | None = None,
        middle_attention: bool = True,
        checkpointing: bool = False,
        image_channels: Annotated[int, Given] = 3,
    ):
        super().__init__()
        self.image_channels = image_channels
        attention_factors = attention_factors or []
        self.c = c
        self.f = 2 ** (len(multipliers) - 1)
        _check(c, multipliers, width, blocks, attention_factors)
        at_level = [2**level in attention_factors for level in range(len(multipliers))]
        widths = [width * m for m in multipliers]
        h = channels_in(c)
        self.encoder = Encoder(h, width, widths, blocks, at_level, middle_attention, checkpointing, image_channels)
        self.decoder = Decoder(c, widths, blocks, at_level, middle_attention, checkpointing, image_channels)
        self.quant_conv = nn.Conv2d(h, h, 1)
        self.post_quant_conv = nn.Conv2d(c, c, 1)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, where the adaptive weight compares gradients."""
        weight = self.decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def moments_layer(self) -> nn.Conv2d:
        """The 1×1 convolution after the encoder."""
        return self.quant_conv

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the decoder and of the 1×1 convolution before it."""
        return chain(self.decoder.parameters(), self.post_quant_conv.parameters())

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → [B, channels_in(c), H/f, W/f]."""
        return self.quant_conv(self.encoder(image_BCHW))

    def decode_features(self, z_BCHW: Tensor) -> Tensor:
        """Latent → the map that the last convolution reads."""
        return self.decoder(self.post_quant_conv(z_BCHW))

    def to_image(self, features_BCHW: Tensor) -> Tensor:
        """The last convolution: → [B, 3, H, W], not clamped."""
        return self.decoder.conv_out(features_BCHW)


def _check(c: int, multipliers: list[int], width: int, blocks: int, attention_factors: list[int]) -> None:
    for name, value in {"c": c, "width": width, "blocks": blocks}.items():
        if value < 1:
            raise ConfigError(f"ae.network.{name}={value} must be at least 1.")
    if not multipliers or min(multipliers) < 1:
        raise ConfigError(
            f"ae.network.multipliers={multipliers} must list one whole number from 1 up per level; "
            "f is 2 to the number of levels less one. Write [1, 2, 4] for f=4."
        )
    levels = [2**level for level in range(len(multipliers))]
    wrong = [factor for factor in attention_factors if factor not in levels]
    if wrong:
        raise ConfigError(
            f"ae.network.attention_factors={attention_factors}: {wrong[0]} is no down-sampling factor of this network; "
            f"use some of {levels}. (These are factors, not feature sizes: 256 px / size.)"
        )


class ConvResidual(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input (official ResnetBlock; its dropout is 0)."""

    one_graph: ClassVar[bool] = True

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = NormSwish(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = NormSwish(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv2(self.norm2(self.conv1(self.norm1(x_BCHW))))
        return h_BCHW + self.nin_shortcut(x_BCHW)


class Attention(nn.Module):
    """Self-attention over all positions with one head as wide as the layer (official AttnBlock)."""

    one_graph: ClassVar[bool] = True

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # The 1×1 convolutions as linear maps over positions: then a position's features lie side by side, without which
        # PyTorch's fused attention on a CPU falls back to writing out the N×N weights (2 GiB for a 512 px image at f = 4).
        h_BNC = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        q_B1NC, k_B1NC, v_B1NC = (_linear(conv, h_BNC).unsqueeze(1) for conv in (self.q, self.k, self.v))
        out_B1NC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)  # scale C^(-1/2), as the official code
        out_BNC = _linear(self.proj_out, out_B1NC.squeeze(1))
        return x_BCHW + out_BNC.transpose(1, 2).unflatten(2, x_BCHW.shape[2:])


def _linear(conv: nn.Conv2d, x_BNC: Tensor) -> Tensor:
    return F.linear(x_BNC, conv.weight.flatten(1), conv.bias)


class ConvDownsample(nn.Module):
    """Stride-2 convolution with zeros on the right and the bottom only (official `ConvDownsample`)."""

    one_graph: ClassVar[bool] = True

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class ConvUpsample(nn.Module):
    """Nearest neighbour ×2, then a 3×3 convolution."""

    one_graph: ClassVar[bool] = True

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Blocks(nn.Module):
    """One level: residual blocks, each followed by attention when the level has it, then the change of resolution."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, attention: bool, checkpointing: bool):
        super().__init__()
        self.block = nn.ModuleList(
            [ConvResidual(channels_out if b else channels_in, channels_out) for b in range(blocks)]
        )
        self.attn = nn.ModuleList([Attention(channels_out) for _ in range(blocks if attention else 0)])
        self.downsample: nn.Module | None = None  # set by the encoder, on every level but the last
        self.upsample: nn.Module | None = None  # set by the decoder, on every level but the first
        self.checkpointing = checkpointing

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for b, block in enumerate(self.block):
            x_BCHW = _run(block, x_BCHW, self.checkpointing)
            if len(self.attn):
                x_BCHW = _run(self.attn[b], x_BCHW, self.checkpointing)
        for resample in (self.downsample, self.upsample):
            x_BCHW = x_BCHW if resample is None else resample(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """residual, attention, residual, at the lowest resolution."""

    def __init__(self, channels: int, attention: bool, checkpointing: bool):
        super().__init__()
        self.block_1 = ConvResidual(channels, channels)
        self.attn_1 = Attention(channels) if attention else nn.Identity()
        self.block_2 = ConvResidual(channels, channels)
        self.checkpointing = checkpointing

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for part in (self.block_1, self.attn_1, self.block_2):
            x_BCHW = _run(part, x_BCHW, self.checkpointing)
        return x_BCHW


def _run(module: nn.Module, x_BCHW: Tensor, checkpointing: bool) -> Tensor:
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(module, x_BCHW, use_reentrant=False, preserve_rng_state=False)  # nothing random inside
    return module(x_BCHW)


class Encoder(nn.Module):
    """Image → `channels_out` maps at 1/f of the size."""

    def __init__(
        self,
        channels_out: int,
        width: int,
        widths: list[int],
        blocks: int,
        attention: list[bool],
        middle_attention: bool,
        checkpointing: bool,
        image_channels: int = 3,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(image_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(zip([width, *widths[:-1]], widths, strict=True)):
            down = Blocks(before, after, blocks, attention[level], checkpointing)
            if level < len(widths) - 1:
                down.downsample = ConvDownsample(after)
            self.down.append(down)
        self.mid = Middle(widths[-1], middle_attention, checkpointing)
        self.norm_out = NormSwish(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(image_BCHW)
        for down in self.down:
            x_BCHW = down(x_BCHW)
        return self.conv_out(self.norm_out(self.mid(x_BCHW)))


class Decoder(nn.Module):
    """Latent → the map that `conv_out` turns into an image (kept apart, because the adaptive weight needs it)."""

    def __init__(
        self,
        c: int,
        widths: list[int],
        blocks: int,
        attention: list[bool],
        middle_attention: bool,
        checkpointing: bool,
        image_channels: int = 3,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(c, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], middle_attention, checkpointing)
        ups: list[nn.Module] = []
        before = widths[-1]
        for level in reversed(range(len(widths))):
            up = Blocks(before, widths[level], blocks + 1, attention[level], checkpointing)
            if level > 0:
                up.upsample = ConvUpsample(widths[level])
            ups.insert(0, up)
            before = widths[level]
        self.up = nn.ModuleList(ups)
        self.norm_out = NormSwish(widths[0])
        self.conv_out = nn.Conv2d(widths[0], image_channels, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(z_BCHW))
        for up in reversed(self.up):
            x_BCHW = up(x_BCHW)
        return self.norm_out(x_BCHW)
