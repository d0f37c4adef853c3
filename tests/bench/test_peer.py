"""diffusers' network beside ours: as many parameters, and with our weights the same output."""

import dataclasses
import sys

import pytest
import torch

from ldmlab.bench.unet import SHAPES, Pair, Shape, compare_unet
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError, UserError


def small(name: str) -> Shape:
    """A benchmarked shape at width 32 and a quarter of the size."""
    shape = SHAPES[name]
    return dataclasses.replace(shape, options=shape.options | {"width": 32}, size=shape.size // 4)


@pytest.mark.parametrize("name", SHAPES)
def test_peer_has_our_parameters_and_computes_our_output(name: str) -> None:
    pair = Pair(small(name), 2, objective=None, device=torch.device("cpu"))
    ours, peer = (sum(p.numel() for p in pair.modules[m].parameters()) for m in ("ours", "peer"))
    assert ours == peer
    assert pair.difference() < 1e-5  # float32, other order of summation
    for name, module in pair.modules.items():  # the weights are copies: training one does not move the other
        pair.train(name, "fp32")
        assert all(p.grad is None for p in module.parameters())
    assert pair.difference() < 1e-3


def test_a_moved_weight_is_seen() -> None:
    pair = Pair(small("tiny"), 2, objective=None, device=torch.device("cpu"))
    with torch.no_grad():
        next(pair.modules["peer"].parameters()).add_(0.1)
    assert pair.difference() > 1e-3


def test_no_diffusers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"needs diffusers .* pip install") as caught:
        Pair(small("tiny"), 1, objective=None, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["bench.shapes=[huge]", "bench.variants=[train,sleep]", "bench.shapes=[]"])
def test_unknown_shapes_and_variants(word: str) -> None:
    path = word.partition("=")[0]
    with pytest.raises(ConfigError, match=path):
        compare_unet(load(["compare=unet", word]).cfg, [], torch.device("cpu"))
