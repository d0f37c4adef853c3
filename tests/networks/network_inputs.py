"""What the tests of every network feed it."""

from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def stirred(net: Net) -> Net:
    """Zero-initialised layers replaced, so that every branch speaks."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def cond(tokens: Tensor | None = None, concat: Tensor | None = None, vector: Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(tokens_BLD=tokens, concat_BCHW=concat, vector_BD=vector, seen_BL=None)


def inputs(b: int = 3, c: int = 4, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(b, c, size, size, generator=generator), torch.tensor([0, 500, 999][:b])
