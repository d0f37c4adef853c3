"""The shapes classifier: sizes, types, independence of the batch, a pyramid that can be differentiated."""

import pytest
import torch

from ldmlab.errors import ConfigError
from ldmlab.metrics.features import Extractor
from ldmlab.metrics.shapes_classifier import ShapesClassifier


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ShapesClassifier(width=16).eval()


@pytest.mark.parametrize("side", [16, 17, 32, 64, 100])
def test_any_size_from_16(net, side):
    found = net(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert found.features_BD.shape == (2, 64) == (2, net.feature_dim)
    assert found.logits_BK.shape == (2, 10) == (2, net.logit_dim)
    assert [m.shape[-1] for m in net.feature_maps(torch.zeros(1, 3, side, side))] == [
        side,
        (side + 1) // 2,
        (side + 3) // 4,
        (side + 7) // 8,
    ]


def test_default_features_fit_the_fast_metrics():
    assert ShapesClassifier().feature_dim <= 128
    assert isinstance(ShapesClassifier(), Extractor)


def test_uint8_and_float_are_one_image(net):
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x).features_BD, net(x.float() / 127.5 - 1).features_BD)


def test_a_training_step_does_not_depend_on_the_micro_batch(net):
    net.train()
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = torch.arange(6)
    torch.nn.functional.cross_entropy(net(x).logits_BK, y).backward()
    whole = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for rows in (slice(0, 2), slice(2, 6)):
        (torch.nn.functional.cross_entropy(net(x[rows]).logits_BK, y[rows], reduction="sum") / 6).backward()
    for a, p in zip(whole, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-5)


def test_pyramid_gives_gradients_to_the_image(net):
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    sum(m.square().mean() for m in net.feature_maps(x)).backward()
    assert x.grad.abs().sum() > 0


def test_refusals(net):
    with pytest.raises(ConfigError, match=r"eval\.extractor\.n_classes=0: must be at least 1"):
        ShapesClassifier(n_classes=0)
    with pytest.raises(ConfigError, match=r"at least 16 pixels a side; data\.resolution=8"):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"eval\.extractor\.width must be a positive multiple of 8; got 12"):
        ShapesClassifier(width=12)
