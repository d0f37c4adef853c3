import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldmlab.autoencoders.norm import NormSwish, groups_of


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(128, 32), (512, 32), (64, 16), (32, 8), (16, 4), (40, 10), (160, 32), (37, 1), (6, 1), (2, 1)],
)
def test_groups_are_the_largest_divisor_up_to_32_with_4_channels_each(channels, groups):
    assert groups_of(channels) == groups


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_group_norm_then_swish_with_gradients(layout):
    torch.manual_seed(0)
    ours = NormSwish(12).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    x = torch.randn(3, 12, 5, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    cotangent = torch.randn(3, 12, 5, 4, dtype=torch.float64)
    parameters = (x, ours.weight, ours.bias)
    got, want = ours(x), F.silu(F.group_norm(x, ours.num_groups, ours.weight, ours.bias, ours.eps))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for g, w in zip(
        torch.autograd.grad(got, parameters, cotangent), torch.autograd.grad(want, parameters, cotangent), strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(ours, (x,))


def test_keeps_only_its_input_for_the_backward_pass():
    held = []
    x = torch.randn(2, 32, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.data_ptr()) or t, lambda t: t):
        NormSwish(32)(x)
    large = {p for p in held if p == x.data_ptr()}
    assert len(held) == 5 and large  # x, weight, bias, mean, rstd


def test_half_precision_in_and_out():
    norm = NormSwish(32)
    x = torch.randn(2, 32, 8, 8)
    half = x.bfloat16().requires_grad_()
    out = norm(half)
    out.float().square().mean().backward()
    assert out.dtype == half.grad.dtype == torch.bfloat16 and norm.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), norm(x), rtol=3e-2, atol=3e-2)
