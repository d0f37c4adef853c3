"""Pieces of the ADM UNet: group norm, residual block, down- and up-sampling.

Every piece of a level is called alike, `piece(h_BCHW, emb_BD, tokens_BLD)`, and takes what it needs; so a level needs
no type tests. Names and weight shapes follow CompVis/latent-diffusion openaimodel.py.

Shape letters: B batch, C channels, H W space, L tokens, D features.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldmlab.networks.convolution import Conv3x3
from ldmlab.networks.kv_cache import Tokens

GROUPS = 32  # of every GroupNorm, as in ADM


@dataclass(frozen=True)
class Grouping:
    """How every normalisation of a network splits its channels: into `groups` groups, or into groups of `channels` channels.

    Exactly one of the two. Groups of a fixed number of channels are one rule for networks of any width, wide or narrow.
    """

    groups: int | None = GROUPS
    channels: int | None = None

    @property
    def step(self) -> int:
        """What the channels of every level must be a multiple of."""
        return self.groups or self.channels or 1

    def of(self, channels: int) -> int:
        """Groups of a normalisation of so many channels."""
        return self.groups if self.groups is not None else channels // self.step


OFFICIAL = Grouping()  # of every published network

M = TypeVar("M", bound=nn.Module)


def zeroed(module: M) -> M:
    """The module with all parameters set to zero: a branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def cast_to(x: Tensor, weight_C: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
    """A norm's weight and bias as its kernel wants them for `x`: CPU kernels mix dtypes, CUDA's do not."""
    if x.dtype == weight_C.dtype or x.device.type == "cpu":
        return weight_C, bias_C
    return weight_C.to(x.dtype), bias_C.to(x.dtype)


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Autocast off; the meta device, where networks are only counted, has none to switch."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


class Norm(nn.GroupNorm):
    """GroupNorm (32 groups in published networks) that keeps low precision low, with sums accumulated in float32.

    Autocast on CUDA would run it (and the SiLU behind it) in float32, a sixth of the memory traffic of LDM-4. PyTorch's
    kernels accumulate mean and variance of bfloat16 input in float32 without being asked; what is given up is that
    CUDA's stores the two in bfloat16 before it applies them (aten/src/ATen/native/cuda/group_norm_kernel.cu).
    """

    def __init__(self, channels: int, eps: float, grouping: Grouping = OFFICIAL):
        super().__init__(grouping.of(channels), channels, eps=eps)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """Normalised per group of channels, in the dtype of its input."""
        with no_autocast(h_BCHW.device.type):
            weight_C, bias_C = cast_to(h_BCHW, self.weight, self.bias)
            return F.group_norm(h_BCHW, self.num_groups, weight_C, bias_C, self.eps)


class TokenNorm(nn.LayerNorm):
    """LayerNorm over features, in the dtype of its input for the same reason."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Normalised per token."""
        with no_autocast(x_BLD.device.type):
            weight_D, bias_D = cast_to(x_BLD, self.weight, self.bias)
            return F.layer_norm(x_BLD, self.normalized_shape, weight_D, bias_D, self.eps)


class InputConv(nn.Conv2d):
    """The first 3x3 convolution, callable like every other piece."""

    def __init__(self, channels: int, out: int):
        super().__init__(channels, out, 3, padding=1)

    def forward(self, h_BCHW: Tensor, emb_BD: Tensor, tokens_BLD: Tensor | None) -> Tensor:  # type: ignore[override]
        """The convolution of h; embedding and tokens are not used."""
        return super().forward(h_BCHW)


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution."""

    one_graph: ClassVar[bool] = True

    def __init__(self, channels: int):
        super().__init__()
        self.op = Conv3x3(channels, channels, stride=2)

    def forward(self, h_BCHW: Tensor, emb_BD: Tensor, tokens_BLD: Tensor | None) -> Tensor:
        """[B, C, H, W] → [B, C, H/2, W/2]."""
        return self.op(h_BCHW)


class Upsample(nn.Module):
    """Double height and width by repetition, then a 3x3 convolution."""

    one_graph: ClassVar[bool] = True

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, h_BCHW: Tensor, emb_BD: Tensor, tokens_BLD: Tensor | None) -> Tensor:
        """[B, C, H, W] → [B, C, 2H, 2W]."""
        return self.conv(doubled(h_BCHW))


def doubled(h_BCHW: Tensor) -> Tensor:
    """Each position repeated 2x2."""
    return F.interpolate(h_BCHW, scale_factor=2.0, mode="nearest")


def halved(h_BCHW: Tensor) -> Tensor:
    """The mean of each 2x2 square."""
    return F.avg_pool2d(h_BCHW, 2)


class ResBlock(nn.Module):
    """norm-SiLU-conv, plus the embedding, norm-SiLU-dropout-conv(zero), plus the skip.

    `scale_shift`: the embedding scales and shifts the second norm's output (as in ADM) instead of being added before
    it. `resample`: "up" and "down" change the size of both branches without weights (BigGAN's block), so the block
    replaces an Upsample or Downsample.
    """

    one_graph: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        out: int,
        emb_dim: int,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: str = "none",
        grouping: Grouping = OFFICIAL,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = {"none": None, "up": doubled, "down": halved}[resample]
        self.in_layers = nn.Sequential(Norm(channels, 1e-5, grouping), nn.SiLU(), Conv3x3(channels, out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(
            Norm(out, 1e-5, grouping), nn.SiLU(), nn.Dropout(dropout), zeroed(Conv3x3(out, out))
        )
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, h_BCHW: Tensor, emb_BD: Tensor, tokens_BLD: Tensor | None) -> Tensor:
        """[B, channels, H, W] → [B, out, H, W] (or 2H, H/2 when it resamples); tokens are not used."""
        norm, silu, conv = self.in_layers
        x_BCHW = silu(norm(h_BCHW))
        if self.resample is not None:
            x_BCHW, h_BCHW = self.resample(x_BCHW), self.resample(h_BCHW)
        x_BCHW = conv(x_BCHW)
        emb_BC11 = self.emb_layers(emb_BD)[:, :, None, None].to(x_BCHW.dtype)
        if self.scale_shift:
            scale_BC11, shift_BC11 = emb_BC11.chunk(2, dim=1)
            x_BCHW = self.out_layers[0](x_BCHW) * (1 + scale_BC11) + shift_BC11
            x_BCHW = self.out_layers[1:](x_BCHW)
        else:
            x_BCHW = self.out_layers(x_BCHW + emb_BC11)
        return self.skip_connection(h_BCHW) + x_BCHW


class Pieces(nn.Sequential):
    """Pieces called one after the other with the same embedding and tokens.

    `recompute`: keep only the input of each piece for the backward pass and compute the rest again (gradient
    checkpointing).
    """

    recompute: bool = False

    def forward(self, h_BCHW: Tensor, emb_BD: Tensor, tokens_BLD: Tokens | None) -> Tensor:  # type: ignore[override]
        """The last piece's output."""
        for piece in self:
            if self.recompute and torch.is_grad_enabled():
                h_BCHW = checkpoint(piece, h_BCHW, emb_BD, tokens_BLD, use_reentrant=False)
            else:
                h_BCHW = piece(h_BCHW, emb_BD, tokens_BLD)
        return h_BCHW
