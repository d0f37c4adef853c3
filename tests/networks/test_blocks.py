"""Residual blocks against their formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldmlab.networks.blocks import Norm, ResBlock, TokenNorm


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", ["none", "up", "down"])
def test_residual_block_computes_the_formula(scale_shift: bool, resample: str) -> None:
    torch.manual_seed(0)
    block = ResBlock(32, 64, emb_dim=8, scale_shift=scale_shift, resample=resample)
    nn.init.normal_(block.out_layers[3].weight, std=0.1)
    h, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 8)

    def size(x: torch.Tensor) -> torch.Tensor:
        if resample == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5)) if resample == "down" else x

    x = block.in_layers[2](size(F.silu(F.group_norm(h, 32, eps=1e-5))))
    e = block.emb_layers[1](F.silu(emb))[:, :, None, None]
    if scale_shift:
        x = F.group_norm(x, 32, eps=1e-5) * (1 + e[:, :64]) + e[:, 64:]
    else:
        x = F.group_norm(x + e, 32, eps=1e-5)
    expected = block.skip_connection(size(h)) + block.out_layers[3](F.silu(x))
    torch.testing.assert_close(block(h, emb, None), expected, rtol=1e-4, atol=1e-5)


def test_norms_keep_low_precision_with_exact_enough_statistics() -> None:
    torch.manual_seed(0)
    h = 3 + 5 * torch.randn(2, 64, 16, 16)
    norm, token_norm = Norm(64, eps=1e-5), TokenNorm(16)
    with torch.autocast("cpu", torch.bfloat16):
        low, low_tokens = norm(h.bfloat16()), token_norm(h.bfloat16())
    assert low.dtype == low_tokens.dtype == torch.bfloat16
    # One rounding of input and output each: 2^-8 relative; statistics summed in bfloat16 would be off by percents.
    torch.testing.assert_close(low.float(), norm(h.bfloat16().float()), rtol=2**-7, atol=2**-8)
    torch.testing.assert_close(low_tokens.float(), token_norm(h.bfloat16().float()), rtol=2**-7, atol=2**-8)
