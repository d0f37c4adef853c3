"""The 3×3 convolution as a product is the same function, and is taken where the table says that it is faster."""

from itertools import product
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from ldmlab.conditioning.base import Cond
from ldmlab.networks import convolution
from ldmlab.networks.convolution import Conv3x3, as_product, is_product, positions
from ldmlab.networks.unet import UNet


@pytest.mark.parametrize(("size", "stride"), product([(1, 1), (1, 2), (2, 2), (3, 2), (4, 4), (5, 3)], [1, 2]))
def test_the_product_is_the_convolution_with_its_gradients(size: tuple[int, int], stride: int) -> None:
    h = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    known, found = F.conv2d(h, weight, bias, stride, padding=1), as_product(h, weight, bias, stride)
    assert found.shape == known.shape
    assert torch.allclose(found, known, atol=1e-12)
    seed = torch.randn_like(known)
    for a, b in zip(
        torch.autograd.grad(known, (h, weight, bias), seed), torch.autograd.grad(found, (h, weight, bias), seed),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("amx", [True, False])
def test_a_product_in_bfloat16_with_amx_and_few_positions_alone(amx: bool) -> None:
    with patch.object(convolution, "has_amx", lambda: amx):
        few, wide = torch.zeros(1, 64, 2, 2), torch.zeros(1, 352, 4, 4)
        low = [x.bfloat16() for x in (few, wide)]
        assert [is_product(x) for x in low] == [amx, amx]
        assert not is_product(few)
        assert not is_product(low[0].to("meta"))
        assert not is_product(torch.zeros(1, 64, 4, 4, dtype=torch.bfloat16))
        assert is_product(torch.zeros(1, 64, 4, 4, dtype=torch.bfloat16), stride=2) == amx
        assert not is_product(torch.zeros(1, 352, 5, 4, dtype=torch.bfloat16))
        with torch.autocast("cpu", torch.bfloat16):
            assert is_product(few) == amx


def test_a_linear_map_of_positions_is_the_same_copied_or_not() -> None:
    h, weight = torch.randn(4, 6, 2, 3), torch.randn(5, 6)
    expected = torch.einsum("bchw,oc->bhwo", h, weight).flatten(1, 2)
    with torch.no_grad():
        assert positions(h).is_contiguous()
        assert not positions(torch.randn(4, 6, 8, 8)).is_contiguous()
        assert positions(torch.randn(4, 6, 8, 8).bfloat16()).is_contiguous()
        assert torch.allclose(F.linear(positions(h), weight), expected, atol=1e-6)
    assert torch.allclose(F.linear(positions(h), weight), expected, atol=1e-6)


def test_a_network_computes_the_same_either_way() -> None:
    """In float64, with every convolution taken as a product and then none."""
    torch.manual_seed(0)
    net = UNet(3, 3, 32, [1, 2], 1, attention_factors=[2], heads=2, scale_shift_norm=True).double()
    assert (
        sum(isinstance(module, Conv3x3) for module in net.modules()) == 18
    )  # eight residual blocks and two changes of size
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.05)
    z, t = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.tensor([0.1, 0.7], dtype=torch.float64)
    results = []
    for way in (True, False):
        with patch.object(convolution, "is_product", lambda *_, way=way: way), torch.no_grad():
            results.append(net(z, t, Cond()))
    assert results[0].abs().max() > 0.01
    assert torch.allclose(*results, atol=1e-10)
