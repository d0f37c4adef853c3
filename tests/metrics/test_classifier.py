"""The classifier whose features are scored: what it keeps of an image, what it is given, sizes, types, micro-batches."""

import pytest
import torch

from ldmlab.data.fields import class_map, label
from ldmlab.data.shapes import DECLARED, Shapes
from ldmlab.errors import ConfigError
from ldmlab.metrics.classifier import TURNS, Classifier, turned
from ldmlab.metrics.corruptions import CORRUPTIONS, Corrupted
from ldmlab.metrics.examination import examine, in_words
from ldmlab.metrics.features import Extractor, FeatureSet, extract

SHAPES = tuple(DECLARED.values())
ALL = ["label", "colour", "background", "fill", "place"]


def classifier(width: int = 16, learns: list[str] = ALL) -> Classifier:
    torch.manual_seed(0)
    return Classifier(SHAPES, width, learns, "shapes").eval()


def images(n: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [16, 17, 32, 64, 100])
def test_any_size_from_16(side):
    net = classifier()
    found = net(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert found.features_BD.shape == (2, 64) == (2, net.feature_dim)
    assert found.logits_BK.shape == (2, 10) == (2, net.logit_dim)
    sides = [m.shape[-1] for m in net.feature_maps(torch.zeros(1, 3, side, side))]
    assert sides == [side, (side + 1) // 2, (side + 3) // 4, (side + 7) // 8]


def test_default_features_fit_the_fast_metrics():
    net = Classifier(SHAPES)
    assert net.feature_dim <= 128 and isinstance(net, Extractor) and net.classes_of_data


def test_uint8_and_float_are_one_image():
    net, x = classifier(), images(3)
    torch.testing.assert_close(net(x).features_BD, net(x.float() / 127.5 - 1).features_BD)


def test_nothing_in_it_undoes_contrast_or_brightness():
    """A linear change of the image is a linear change of the first layer; nothing divides it away before the features."""
    net = classifier()
    x = 0.2 * (images(4).float() / 127.5 - 1)
    first, double, bright = (net.feature_maps(y)[0] for y in (x, 2 * x, x + 0.3))
    zero = net.feature_maps(torch.zeros_like(x))[0]
    torch.testing.assert_close(double - zero, 2 * (first - zero), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.feature_maps(x - 0.3)[0] + bright, 2 * first, rtol=1e-4, atol=1e-5)
    early = net.early(x), net.early(2 * x)
    log_deviation = slice(4, 8)  # of the first layer: it rises by log 2 where the map is not flat
    torch.testing.assert_close(
        (early[1] - early[0])[:, log_deviation], torch.full((4, 4), 2.0).log(), rtol=0.05, atol=0.02
    )


def test_every_corruption_moves_the_features_of_even_an_untrained_network():
    data = Shapes(resolution=32, val_images=40, split="val")
    net, rows = classifier(), list(range(40))

    def read(rows):
        return torch.stack([torch.from_numpy(s["image"]) for s in data.__getitems__(rows)])

    def features(at) -> torch.Tensor:
        return net(at(rows).permute(0, 3, 1, 2)).features_BD

    plain = features(read)
    for name, kind in CORRUPTIONS.items():
        moved = [(features(Corrupted(read, 40, name, dose)) - plain).norm() for dose in (kind.doses[0], kind.doses[-1])]
        assert 0 <= moved[0] < moved[1], name


def test_features_are_standardised_and_hashed_with_it():
    net, x = classifier(), images(50)
    before, raw = net.fingerprint(), net(x).features_BD
    net.standardise(raw.mean(0), raw.std(0, correction=0))
    after = net(x).features_BD
    torch.testing.assert_close(after.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std(0, correction=0), torch.ones(64), atol=1e-3, rtol=0)
    assert net.fingerprint() != before
    net.standardise(raw.mean(0), torch.zeros(64))
    assert net(x).features_BD.isfinite().all()


def test_a_training_step_does_not_depend_on_the_micro_batch():
    net = classifier().train()
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = torch.arange(6)

    def loss(rows: slice) -> torch.Tensor:
        answers = net(x[rows], -x[rows])
        squares = sum(v.square().sum() for name, v in answers.items() if name != "label")
        return torch.nn.functional.cross_entropy(answers["label"], y[rows], reduction="sum") + squares

    loss(slice(0, 6)).backward()
    whole = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for rows in (slice(0, 2), slice(2, 6)):
        loss(rows).backward()
    for a, p in zip(whole, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-4)


def test_pyramid_gives_gradients_to_the_image():
    net, x = classifier(), torch.zeros(1, 3, 32, 32, requires_grad=True)
    sum(m.square().mean() for m in net.feature_maps(x)).backward()
    assert x.grad.abs().sum() > 0


def test_data_without_labels_teaches_quarter_turns():
    net = Classifier((class_map("mask", 2),), 16, ["label"])
    assert list(net.values) == [TURNS] and net.logit_dim == 0 and not net.classes_of_data
    assert extract([images(3)], net.eval(), "cpu").logits is None
    assert isinstance(extract([images(3)], net, "cpu"), FeatureSet)
    x = images(4).float()
    back = turned(turned(x, torch.tensor([0, 1, 2, 3])), torch.tensor([0, 3, 2, 1]))
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(turned(x, torch.full((4,), 2)), x.flip(2, 3))


def test_what_it_knows_stands_beside_guessing():
    data = Shapes(resolution=16, val_images=60, split="val", fields=ALL)
    known = examine(classifier(), data, torch.device("cpu"), size=25)
    labels = torch.from_numpy(data.labels())
    assert list(known) == ALL and known["label"]["trivial"] == pytest.approx(labels.bincount().max().item() / 60)
    logits = extract(
        [torch.stack([torch.from_numpy(s["image"]) for s in data.__getitems__(list(range(60)))]).permute(0, 3, 1, 2)],
        classifier(),
        "cpu",
    )
    assert known["label"]["value"] == pytest.approx((logits.logits.argmax(1) == data.labels()).mean())
    assert known["place"]["what"] == "R²" and known["place"]["value"] < 1
    assert "label" in in_words(known) and "commonest" in in_words(known) and "place R²" in in_words(known)


def test_refusals():
    with pytest.raises(ConfigError, match=r"at least 16 pixels a side; data\.resolution=8"):
        classifier()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(
        ConfigError, match=r"eval\.extractor\.width must be a positive multiple of 8; got 12. The nearest is 16"
    ):
        Classifier(SHAPES, width=12)
    with pytest.raises(
        ConfigError,
        match=r"eval\.extractor\.learns: 'caption' is no label and no vector .* label, colour, .* place",
    ):
        Classifier(SHAPES, learns=["label", "caption"])
    with pytest.raises(ConfigError, match=r"eval\.extractor\.learns: 'species' is no label"):
        Classifier((label(3),), learns=["label", "species"])
