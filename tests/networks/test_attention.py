"""Attention against its formula, and the official order of heads."""

import math

import pytest
import torch

from ldmlab.networks import attention
from ldmlab.networks.attention import CrossAttention, SelfAttention, SpatialTransformer, attend
from ldmlab.networks.embeddings import sinusoidal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_kernels_compute_the_formula(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    expected = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(
        attend(q.to(dtype), k.to(dtype), v.to(dtype)).float(), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("amx", [True, False])
def test_every_kernel_chosen_in_low_precision_computes_the_formula(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """More positions than `FEW`: with AMX the fused kernel, without it two products; in training their weights made again."""
    q, k, v = torch.randn(3, 2, 2, 2 * attention.FEW, 8, generator=torch.Generator().manual_seed(0)).unbind()
    expected = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    used: list[str] = []
    for name in ("two_products", "recomputed"):
        kernel = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *x, name=name, kernel=kernel: (used.append(name), kernel(*x))[1])
    for trained, kernels in ((False, [] if amx else ["two_products"]), (True, ["recomputed", "two_products"])):
        used.clear()
        found = attend(*(x.bfloat16().requires_grad_(trained) for x in (q, k, v)))
        assert used[: len(kernels)] == kernels and bool(used) == bool(kernels)
        torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("amx", [True, False])
def test_few_positions_in_low_precision_keep_their_weights_in_training(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients beside those of float32; and what is not trained, or not of low precision, has the fused kernel."""
    q, k, v = torch.randn(3, 2, 2, attention.FEW, 8, generator=torch.Generator().manual_seed(0)).unbind()
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    used: list[str] = []
    kernel = attention.two_products
    monkeypatch.setattr(attention, "two_products", lambda *x: (used.append("two_products"), kernel(*x))[1])
    attend(*(x.bfloat16() for x in (q, k, v)))
    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    known = torch.autograd.grad(attend(*exact).square().sum(), exact)
    assert not used
    low = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    found = torch.autograd.grad(attend(*low).float().square().sum(), low)
    assert used == ["two_products"]
    for a, b in zip(found, known, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.02)


def test_self_attention_orders_qkv_head_by_head() -> None:
    # Official QKVAttentionLegacy: reshape [B, heads, 3 D, L], then split q, k, v; fourth root of D on q and k.
    torch.manual_seed(0)
    layer = SelfAttention(64, heads=4)
    torch.nn.init.normal_(layer.proj_out.weight, std=0.1)
    h = torch.randn(2, 64, 3, 5)
    qkv = layer.qkv(layer.norm(h).flatten(2)).reshape(2 * 4, 3 * 16, 15)
    q, k, v = qkv.split(16, dim=1)
    weight = torch.einsum("bct,bcs->bts", q * 16**-0.25, k * 16**-0.25).softmax(-1)
    expected = h + layer.proj_out(torch.einsum("bts,bcs->bct", weight, v).reshape(2, 64, 15)).reshape(h.shape)
    torch.testing.assert_close(layer(h, torch.empty(0), None), expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_computes_the_formula() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(32, heads=4, context_dim=6)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 3, 6)
    heads = []
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        q, k, v = (
            x @ layer.to_q.weight[rows].T,
            context @ layer.to_k.weight[rows].T,
            context @ layer.to_v.weight[rows].T,
        )
        heads.append((q @ k.transpose(1, 2) * 8**-0.5).softmax(-1) @ v)
    torch.testing.assert_close(layer(x, context), layer.to_out(torch.cat(heads, dim=-1)), rtol=1e-5, atol=1e-5)


def test_spatial_transformer_is_the_identity_at_first_and_keeps_positions() -> None:
    torch.manual_seed(0)
    layer = SpatialTransformer(32, heads=2, context_dim=6, depth=2)
    h, tokens = torch.randn(2, 32, 4, 6), torch.randn(2, 3, 6)
    assert torch.equal(layer(h, torch.empty(0), tokens), h)
    torch.nn.init.normal_(layer.proj_out.weight, std=0.1)
    # Attention knows no positions: a turned map gives the turned answer.
    turned = layer(h.transpose(2, 3).flip(3), torch.empty(0), tokens)
    torch.testing.assert_close(turned, layer(h, torch.empty(0), tokens).transpose(2, 3).flip(3), rtol=1e-4, atol=1e-5)


def test_time_embedding_has_the_cosine_half_first() -> None:
    t = torch.tensor([0, 1, 999])
    embedding = sinusoidal(t, 32)
    for i in (0, 7, 15):
        frequency = 10_000 ** (-i / 16)
        for row, time in enumerate((0, 1, 999)):
            assert float(embedding[row, i]) == pytest.approx(math.cos(time * frequency), abs=2e-4)
            assert float(embedding[row, 16 + i]) == pytest.approx(math.sin(time * frequency), abs=2e-4)
    assert sinusoidal(t, 33).shape == (3, 33)
    assert not sinusoidal(t, 33)[:, -1].any()
