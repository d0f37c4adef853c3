"""The classifier's stage: a loss that learns, draws by position, honest errors."""

import numpy as np
import pytest
import torch

from ldmlab.data.fields import label
from ldmlab.data.shapes import DECLARED, Shapes
from ldmlab.errors import ConfigError
from ldmlab.metrics.classifier import Classifier
from ldmlab.randomness import Draws
from ldmlab.training.changes import changed
from ldmlab.training.classifier_loss import ClassifierLoss, shift

FIELDS = ["label", "colour", "background", "fill", "place"]


def batch_of(samples, first=0):
    image = torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2).float() / 127.5 - 1
    fields = {name: torch.tensor(np.array([s[name] for s in samples])) for name in FIELDS}
    return {"image": image, **fields, "position": torch.arange(first, first + len(samples))}


def test_learns_a_small_set_by_heart():
    torch.manual_seed(0)
    net = Classifier(tuple(DECLARED.values()), 16, FIELDS)
    stage = ClassifierLoss(net, Draws(0))
    assert stage.players == ("classifier",) and stage.modules["classifier"] is net and stage.active("classifier", 0)
    batch = batch_of(Shapes(resolution=16, train_images=16, fields=FIELDS).__getitems__(list(range(16))))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(40):
        loss, logs = stage.loss({**batch, "position": torch.arange(16) + 16 * step}, "classifier", 16 * step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logs["accuracy"] >= 0.8 and not logs["loss"].requires_grad


def test_loss_is_a_function_of_the_position():
    torch.manual_seed(0)
    stage = ClassifierLoss(Classifier(tuple(DECLARED.values()), 16, FIELDS), Draws(0))
    batch = batch_of(Shapes(resolution=32, train_images=16, fields=FIELDS).__getitems__(list(range(16))), first=40)
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


def test_early_layers_learn_to_name_the_changes():
    torch.manual_seed(0)
    net = Classifier(tuple(DECLARED.values()), 32, FIELDS)
    data, found = batch_of(Shapes(resolution=32, train_images=320, fields=FIELDS).__getitems__(list(range(320)))), []
    optimizer = torch.optim.AdamW([*net.early.parameters(), *net.changes.parameters()], lr=5e-3)
    for step in range(250):
        image = data["image"].roll(-32 * step, dims=0)[:32]
        x, target = changed(image, torch.arange(32 * step, 32 * step + 32), Draws(0))
        loss = torch.nn.functional.mse_loss(net.changes(net.early(x)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert np.mean(found[-20:]) < 0.85 * float(targets(8000).var(dim=0).mean())  # beside: always naming the mean


def targets(n):
    """How n images would be changed."""
    return changed(torch.zeros(n, 3, 16, 16), torch.arange(n), Draws(0))[1]


def test_changes_are_those_that_are_named():
    image = batch_of(Shapes(resolution=32, train_images=64, fields=FIELDS).__getitems__(list(range(64))))["image"]
    x, target = changed(image, torch.arange(64), Draws(0))
    untouched = (target == 0).all(dim=1)
    assert 0 < untouched.sum() < 16  # about 1 in 32
    torch.testing.assert_close(x[untouched], image[untouched])
    assert (x[~untouched] - image[~untouched]).abs().amax(dim=(1, 2, 3)).min() > 0
    brighter = (target[:, 1] > 0.3) & (target[:, [0, 2, 3, 4]] == 0).all(dim=1)
    assert brighter.any()
    for new, old, wanted in zip(x[brighter], image[brighter], 0.8 * target[brighter, 1], strict=True):
        inside = new.abs() < 1  # what was clamped moved less
        torch.testing.assert_close((new - old)[inside].median(), wanted, atol=0.05, rtol=0)
    assert target.min() >= -1 and target.max() <= 1 and x.abs().max() <= 1
    one, part = changed(image[:8], torch.arange(8), Draws(0)), changed(image[4:8], torch.arange(4, 8), Draws(0))
    torch.testing.assert_close(one[0][4:], part[0], atol=1e-5, rtol=0)  # of the image alone, not of its neighbours


def test_data_that_lacks_what_is_to_be_learnt():
    stage = ClassifierLoss(Classifier((label(10), label(4, "species")), 16, ["label", "species"]), Draws(0))
    batch = {"image": torch.zeros(1, 3, 32, 32), "label": torch.tensor([3]), "position": torch.arange(1)}
    with pytest.raises(ConfigError, match=r"eval\.extractor\.learns: the data gives no 'species'"):
        stage.loss(batch, "classifier", 0)
    with pytest.raises(ConfigError, match=r"the data has a species 4, and declares 4 of them"):
        stage.loss({**batch, "species": torch.tensor([4])}, "classifier", 0)
