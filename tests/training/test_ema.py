"""The average against its closed form, against timm's rule, and in fp32 under a bf16 module."""

import torch
from torch import nn

from ldmlab.training.ema import EMA, decay_at


def test_warm_up_rule_of_the_official_code() -> None:
    assert decay_at(0.9999, 1) == 2 / 11
    assert decay_at(0.9999, 8) == 0.5
    assert decay_at(0.9999, 10**6) == 0.9999


def test_equals_the_closed_form() -> None:
    module = nn.Linear(3, 2)
    ema = EMA(module, decay=0.9)
    weights = [module.weight.detach().double().clone()]
    for step in range(1, 8):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        ema.update(step)
        weights.append(module.weight.detach().double().clone())
    expected = weights[0]
    for step, weight in enumerate(weights[1:], 1):
        d = min(0.9, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * weight
    assert torch.allclose(ema.state_dict()["weight"].double(), expected, rtol=0, atol=1e-6)


def test_shadow_is_fp32_and_loads_back() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(torch.bfloat16)
    ema = EMA(module, 0.99)
    for step in range(1, 50):
        with torch.no_grad():
            module[0].weight.add_(1e-3)  # too small a step for bf16 sums of averages
        ema.update(step)
    state = ema.state_dict()
    assert state["0.weight"].dtype == torch.float32
    assert "1.running_mean" in state and "1.num_batches_tracked" in state
    other = EMA(module, 0.99)
    other.load(state)
    assert all(torch.equal(a, b) for a, b in zip(ema.shadow, other.shadow, strict=True))
