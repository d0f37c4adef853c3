"""The classifier's stage: a loss that learns, draws by position, honest errors."""

import numpy as np
import pytest
import torch

from ldmlab.data.shapes import Shapes
from ldmlab.errors import ConfigError
from ldmlab.metrics.shapes_classifier import ShapesClassifier
from ldmlab.randomness import Draws
from ldmlab.training.classifier_loss import ClassifierLoss, shift


def batch_of(samples, first=0):
    image = torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2).float() / 127.5 - 1
    label = torch.tensor([s["label"] for s in samples])
    return {"image": image, "label": label, "position": torch.arange(first, first + len(samples))}


def test_learns_a_small_set_by_heart():
    torch.manual_seed(0)
    net = ShapesClassifier(width=16)
    stage = ClassifierLoss(net, Draws(0))
    assert stage.players == ("classifier",) and stage.modules["classifier"] is net and stage.active("classifier", 0)
    batch = batch_of(Shapes(resolution=16, train_images=16).__getitems__(list(range(16))))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(40):
        loss, logs = stage.loss({**batch, "position": torch.arange(16) + 16 * step}, "classifier", 16 * step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logs["accuracy"] >= 0.8 and not logs["loss"].requires_grad


def test_loss_is_a_function_of_the_position():
    torch.manual_seed(0)
    stage = ClassifierLoss(ShapesClassifier(width=16), Draws(0))
    batch = batch_of(Shapes(resolution=32, train_images=16).__getitems__(list(range(16))), first=40)
    whole = stage.loss(batch, "classifier", 0)[0]
    halves = [
        stage.loss({name: value[rows] for name, value in batch.items()}, "classifier", 0)[0]
        for rows in (slice(0, 8), slice(8, 16))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)
    moved = stage.loss({**batch, "position": batch["position"] + 16}, "classifier", 0)[0]
    assert moved != whole


def test_shift_moves_whole_pixels_and_repeats_edges():
    x = torch.arange(32.0).expand(1, 1, 32, 32).contiguous()
    still = shift(x, torch.tensor([[0.5, 0.5]]))  # the middle of 5 choices: -2 … 2
    torch.testing.assert_close(still, x)
    left = shift(x, torch.tensor([[0.5, 0.99]]))
    assert left[0, 0, 0, :4].tolist() == [2, 3, 4, 5] and left[0, 0, 0, -3:].tolist() == [31, 31, 31]
    both = shift(x.expand(2, 1, 32, 32), torch.tensor([[0.0, 0.5], [0.5, 0.0]]))
    torch.testing.assert_close(both[0], x[0])
    assert both[1, 0, 0, :4].tolist() == [0, 0, 0, 1]


def test_data_without_labels_or_with_more_of_them():
    stage = ClassifierLoss(ShapesClassifier(width=16), Draws(0))
    few = ClassifierLoss(ShapesClassifier(n_classes=3, width=16), Draws(0))
    batch = {"image": torch.zeros(1, 3, 32, 32), "label": torch.tensor([3]), "position": torch.arange(1)}
    with pytest.raises(ConfigError, match=r"eval\.extractor\.n_classes=3, but the data has a label 3"):
        few.loss(batch, "classifier", 0)
    with pytest.raises(ConfigError, match=r"eval\.extractor: a classifier can only be trained on data with labels"):
        stage.loss({"image": torch.zeros(1, 3, 32, 32), "position": torch.arange(1)}, "classifier", 0)
