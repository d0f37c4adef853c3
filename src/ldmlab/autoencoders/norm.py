"""Group normalisation followed by swish, as one step that keeps only its input for the backward pass.

Shape letters: B batch, C channels, H W space.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MAX_GROUPS = 32
MIN_CHANNELS = 4  # per group, as at the official network's narrowest level


def group_norm(channels: int) -> nn.GroupNorm:
    """Official `Normalize` (model.py): 32 groups, eps 1e-6; `groups_of` says what narrower layers get."""
    return nn.GroupNorm(groups_of(channels), channels, eps=1e-6)


def groups_of(channels: int) -> int:
    """The largest divisor of `channels` that is at most 32 and leaves 4 channels to a group.

    32 for the official widths (128 up). Narrow layers with 32 groups would have one channel in each: instance
    normalisation, which takes the mean and contrast of every channel away.
    """
    most = min(MAX_GROUPS, max(1, channels // MIN_CHANNELS))
    return max(g for g in range(1, most + 1) if channels % g == 0)


class NormSwish(nn.GroupNorm):
    """`swish(group_norm(x))`; parameters `weight` and `bias` as in the official layout.

    The official code keeps four maps per use (input, normalised, sigmoid, product). This keeps two: the input, and the
    result, which the next convolution holds anyway; the normalised map is computed again in the backward pass.
    Half-precision maps stay in half precision; the statistics are taken in float32 inside the kernel. First derivatives
    only.
    """

    def __init__(self, channels: int):
        super().__init__(groups_of(channels), channels, eps=1e-6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _NormSwish.apply(x_BCHW, self.weight, self.bias, self.num_groups, self.eps)


class _NormSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:
        x_BCHW = _dense(x_BCHW)
        y_BCHW, mean_BG, rstd_BG = _normalise(x_BCHW, weight_C, bias_C, groups, eps)
        ctx.save_for_backward(x_BCHW, weight_C, bias_C, mean_BG, rstd_BG)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(y_BCHW, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_BCHW, weight_C, bias_C, mean_BG, rstd_BG = ctx.saved_tensors
        y_BCHW, _, _ = _normalise(x_BCHW, weight_C, bias_C, ctx.groups, ctx.eps)
        B, C, H, W = x_BCHW.shape
        dy_BCHW = torch.ops.aten.silu_backward(grad_BCHW.to(x_BCHW.dtype), y_BCHW)
        del y_BCHW
        dx_BCHW, dweight_C, dbias_C = torch.ops.aten.native_group_norm_backward(
            _like(dy_BCHW, x_BCHW),
            x_BCHW,
            mean_BG,
            rstd_BG,
            weight_C.to(x_BCHW.dtype),
            B,
            C,
            H * W,
            ctx.groups,
            [True] * 3,
        )
        return dx_BCHW, dweight_C.to(weight_C.dtype), dbias_C.to(bias_C.dtype), None, None


def _normalise(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    B, C, H, W = x_BCHW.shape
    weight_C, bias_C = weight_C.to(x_BCHW.dtype), bias_C.to(x_BCHW.dtype)
    return torch.native_group_norm(x_BCHW, weight_C, bias_C, B, C, H * W, groups, eps)


def _dense(x_BCHW: Tensor) -> Tensor:
    # the CPU kernel reads both layouts; the CUDA kernel is given NCHW, the layout it always supports
    if x_BCHW.is_contiguous() or (
        x_BCHW.device.type == "cpu" and x_BCHW.is_contiguous(memory_format=torch.channels_last)
    ):
        return x_BCHW
    return x_BCHW.contiguous()


def _like(y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """`y` in the memory layout of `x`."""
    channels_last = not x_BCHW.is_contiguous()
    return y_BCHW.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
