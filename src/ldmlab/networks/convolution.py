"""The 3×3 convolution of the UNet, which is a matrix product where a feature map has few positions.

Shape letters: B batch, C channels, H W space, L positions, P = 9·C values of a 3×3 patch, O output channels.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 4  # output positions up to which the product is faster at any width
SOME = 16  # the same for wide maps
WIDE = 352  # channels of a wide map


class Conv3x3(nn.Conv2d):
    """[B, C, H, W] → [B, O, H/stride, W/stride], with a border of zeros; weights are those of `nn.Conv2d`."""

    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__(channels, out, 3, stride=stride, padding=1)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """The convolution, by whichever way is faster (`is_product`)."""
        if not is_product(h_BCHW, self.stride[0]):
            return super().forward(h_BCHW)
        return as_product(h_BCHW, self.weight, self.bias, self.stride[0])


def is_product(h_BCHW: Tensor, stride: int = 1) -> bool:
    """Whether the convolution of this map is faster as a product: in bfloat16, on a CPU with AMX, with few positions.

    PyTorch's convolution there spends its time on rearranging the weights; a pass of training at 1×1 and 2×2 positions
    is 1.5 to 4.4 times as fast without it, at 4×4 with wide maps 1.8 times (`bench.py compare=convolution`). Everywhere else it stays.
    """
    if h_BCHW.device.type != "cpu" or computed_in(h_BCHW) != torch.bfloat16 or not has_amx():
        return False
    height, width = (-(-side // stride) for side in h_BCHW.shape[2:])
    return height * width <= (SOME if h_BCHW.shape[1] >= WIDE else FEW)


def computed_in(h: Tensor) -> torch.dtype:
    """The dtype of a convolution or product of this input on a CPU, autocast or not."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else h.dtype


def as_product(h_BCHW: Tensor, weight_OC33: Tensor, bias_O: Tensor | None, stride: int = 1) -> Tensor:
    """The same convolution as one product of patches and weights; of a single position the middle of the kernel is all."""
    height, width = (-(-side // stride) for side in h_BCHW.shape[2:])
    if h_BCHW.shape[2:] == (1, 1):
        return F.linear(h_BCHW.flatten(1), weight_OC33[:, :, 1, 1], bias_O)[:, :, None, None]
    patch_BPL = F.unfold(h_BCHW.to(computed_in(h_BCHW)), 3, padding=1, stride=stride)
    patch_RP = patch_BPL.transpose(1, 2).flatten(0, 1)  # R = B·L rows, copied: see `positions`
    out_RO = F.linear(patch_RP, weight_OC33.flatten(1), bias_O)
    return out_RO.unflatten(0, (len(h_BCHW), height * width)).transpose(1, 2).unflatten(2, (height, width))


def positions(h_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] → [B, L, C] for a linear map over channels, copied where that map would be slow without.

    Without gradients `F.linear` of a transposed [B, L, C] is a batched product with B copies of the weights: in
    bfloat16 up to 26 times slower on a CPU than one product of B·L rows, in float32 up to 19 times where L is small
    and as fast where it is not (`bench.py compare=convolution`). With gradients PyTorch copies by itself.
    """
    x_BLC = h_BCHW.flatten(2).transpose(1, 2)
    if h_BCHW.device.type != "cpu" or torch.is_grad_enabled():
        return x_BLC
    low = computed_in(h_BCHW) in (torch.bfloat16, torch.float16)
    return x_BLC.contiguous() if low or x_BLC.shape[1] <= SOME else x_BLC


@cache
def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bfloat16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
