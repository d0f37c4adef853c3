"""A condition that is read once: the same answers, and nothing of the tokens is computed again."""

from typing import Any

import pytest
import torch
from network_inputs import cond, inputs, stirred
from torch import Tensor, nn

from ldmlab.networks.attention import TokenAttention
from ldmlab.networks.dit import DiT
from ldmlab.networks.unet import UNet

NETWORKS = {
    "unet": lambda: UNet(4, 4, 32, [1, 2], 1, attention_factors=[1, 2], heads=2, context_dim=8, transformer_depth=2),
    "dit": lambda: DiT(4, 4, width=32, blocks=2, heads=2, context_dim=8),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return stirred(NETWORKS[name]()).eval().requires_grad_(False)


def tokens(length: int) -> Tensor:
    return torch.randn(3, length, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_the_same(name: str, grad: bool, length: int) -> None:
    net: Any = made(name)
    z, t_B = inputs()
    z.requires_grad_(grad)
    plain = cond(tokens=tokens(length))
    with torch.set_grad_enabled(grad):
        known, found = net(z, t_B, plain), net(z, t_B, net.prepared(plain))
        torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found, net(z, t_B, net.prepared(cond(tokens=-plain.tokens_BLD))), atol=1e-3)
        if grad:
            slopes = [torch.autograd.grad(out.square().sum(), z)[0] for out in (known, found)]
            torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_are_read_once_for_all_steps(name: str) -> None:
    net: Any = made(name)
    z, t_B = inputs()
    readers = [module for module in net.modules() if isinstance(module, TokenAttention)]
    read: list[nn.Module] = []
    for reader in readers:
        for linear in (reader.to_k, reader.to_v):
            linear.register_forward_hook(lambda module, given, out: read.append(module))
    ready = net.prepared(cond(tokens=tokens(5)))
    assert len(readers) >= 2 and len(read) == 2 * len(readers)
    with torch.no_grad():
        for _ in range(3):
            net(z, t_B, ready)
    assert len(read) == 2 * len(readers)


def test_without_tokens_and_twice_it_stays_as_it_is() -> None:
    net: Any = made("unet")
    bare = cond(vector=torch.zeros(3, 8))
    assert net.prepared(bare) is bare
    ready = net.prepared(cond(tokens=tokens(5), concat=torch.ones(3, 1, 8, 8)))
    assert net.prepared(ready) is ready and ready.concat_BCHW.shape == (3, 1, 8, 8)


def test_another_network_s_keys_are_refused() -> None:
    net, other = made("unet"), made("unet")
    with pytest.raises(KeyError), torch.no_grad():
        net(*inputs(), other.prepared(cond(tokens=tokens(5))))  # type: ignore[operator]
