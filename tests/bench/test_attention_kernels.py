"""`compare=attention`: the two kernels are the same function, and the table says which one the networks use."""

import pytest
import torch
import torch.nn.functional as F

from ldmlab.bench import attention
from ldmlab.bench.command import run
from ldmlab.config.compose import load
from ldmlab.networks import attention as networks
from ldmlab.networks.attention import recomputed, two_products


def test_both_kernels_are_softmax_qk_v() -> None:
    q, k, v = torch.randn(3, 2, 3, 40, 16, dtype=torch.float64)
    expected = torch.softmax(q @ k.transpose(-1, -2) / 4, dim=-1) @ v
    assert torch.allclose(two_products(q, k, v), expected, atol=1e-12)
    assert torch.allclose(F.scaled_dot_product_attention(q, k, v), expected, atol=1e-12)


@pytest.mark.parametrize("amx", [True, False])
def test_the_table_names_the_kernel_in_use(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "has_amx", lambda: amx)
    monkeypatch.setattr(attention, "SHAPES", [attention.AttentionShape(2, 128, 16, "small")])
    words = ["compare=attention", "bench.rounds=2", "runtime.threads=1"]
    rows = run(load(words).cfg, "python src/bench.py " + " ".join(words)).rows
    assert [(row["dtype"], row["what"]) for row in rows] == [
        ("float32", "forward"), ("float32", "training"), ("bfloat16", "forward"), ("bfloat16", "training")
    ]  # fmt: skip
    assert [row["chosen"] for row in rows] == ["fused", "fused", "fused" if amx else "two products", "two products"]
    assert all(row["fused_seconds"] > 0 and row["plain_seconds"] > 0 for row in rows)


def test_recomputed_has_the_gradients_and_keeps_no_weights() -> None:
    q, k, v = (torch.randn(2, 3, 50, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    seed = torch.randn(2, 3, 50, 8, dtype=torch.float64)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        found = recomputed(q, k, v)
    assert 2 * 3 * 50 * 50 not in sizes
    known = two_products(q, k, v)
    assert torch.equal(found, known)
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), seed), torch.autograd.grad(known, (q, k, v), seed), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12)
