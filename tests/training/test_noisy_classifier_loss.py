"""The classifier of noisy latents learns what can be known at each noise level, no more, and goes on where it stopped."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldmlab.config.schema import Fit
from ldmlab.data.batches import Batches
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.schedules import LinearSqrtBeta
from ldmlab.networks.noisy_classifier import NoisyClassifier
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import Checkpoints
from ldmlab.training.loop import Events, Stopped, fit
from ldmlab.training.noisy_classifier_loss import NoisyClassifierLoss
from ldmlab.training.tracking import Tracker

MEAN, SPREAD, SIDE = (
    0.25,
    0.3,
    4,
)  # of two classes: N(±MEAN, SPREAD²) at each of SIDE² places, the right half turned round
SCHEDULE = LinearSqrtBeta()


class Clouds:
    """Images of two classes; the latent is their first channel."""

    resolution, flip, fields, class_names = SIDE, False, ("label",), ("minus", "plus")

    def __init__(self, n: int, seed: int):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(n) % 2
        step_W1 = np.where(np.arange(SIDE) < SIDE // 2, 1.0, -1.0)[:, None]
        z = (2 * self.labels[:, None, None, None] - 1) * MEAN * step_W1 + SPREAD * rng.standard_normal(
            (n, SIDE, SIDE, 1)
        )
        self.images = np.round(np.clip(z, -1, 1) * 127.5 + 127.5).astype(np.uint8).repeat(3, axis=3)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return [{"image": self.images[i], "label": int(self.labels[i])} for i in rows]


class FirstChannel(nn.Module):
    c = 1

    def moments(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW[:, :1]

    def sample(self, moments_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        return moments_BCHW


class Interrupted(NoisyClassifierLoss):
    stop_at = -1

    def loss(self, batch: dict[str, Any], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        if images_seen == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(batch, player, images_seen)


def stage(seed: int = 0) -> Interrupted:
    torch.manual_seed(0)
    net = NoisyClassifier(1, 2, SIDE, width=32, multipliers=[1], blocks=1, attention_factors=[], heads=1, pool="mean")
    return Interrupted(net, FirstChannel(), Objective("eps", SCHEDULE), Draws(seed), 32)  # type: ignore[arg-type]


def train(made: Interrupted, folder: Path, images: int) -> Tensor:
    budget, net = Fit(images=images, batch_size=32, lr=2e-3), made.modules["classifier"]
    folder.mkdir(parents=True, exist_ok=True)
    fit("toy", made, Batches(Clouds(2048, 0), 32, 32, 3, torch.device("cpu")), budget,
        {"classifier": torch.optim.AdamW(net.parameters())}, {}, Accelerator(cpu=True), Checkpoints(folder), Tracker(folder),
        Events())  # fmt: skip
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def held(n: int = 512) -> list[dict[str, Any]]:
    return Batches(Clouds(n, 1), n, n, 0, torch.device("cpu")).step(0)


def best(quarter: int) -> float:
    """Bayes: the sign of left minus right, right with probability Φ(alpha MEAN SIDE / √(alpha² SPREAD² + sigma²)); over a quarter."""
    levels = [SCHEDULE.at(t) for t in range(250 * quarter, 250 * quarter + 250, 5)]
    reach = [a * MEAN * SIDE / math.sqrt(a**2 * SPREAD**2 + s**2) for a, s in levels]
    return sum(0.5 * (1 + math.erf(x / math.sqrt(2))) for x in reach) / len(reach)


def test_accuracy_of_each_quarter_comes_near_bayes(tmp_path: Path) -> None:
    made = stage()
    before = made.accuracy(held())
    assert before["accuracy"] == 0.5 == before["chance"] and before["images"] == 512  # logits start at zero
    train(made, tmp_path, 32 * 150)
    found = made.accuracy(held())
    known = [best(i) for i in range(4)]
    assert known[0] > 0.9 and known[3] < 0.6  # the question is not the same at every level
    for i in range(4):  # two standard errors of 512 answers, and what 150 steps leave to learn
        assert known[i] - 0.08 < found[f"accuracy_t{i}"] < known[i] + 0.045, (found, known)
    assert found["accuracy"] == pytest.approx(sum(found[f"accuracy_t{i}"] for i in range(4)) / 4)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = train(stage(), tmp_path / "a", 32 * 6)
    stopped = stage()
    stopped.stop_at = 64
    with pytest.raises(Stopped):
        train(stopped, tmp_path / "b", 32 * 6)
    assert torch.equal(train(stage(), tmp_path / "b", 32 * 6), straight)


def test_loss_is_cross_entropy_at_the_objective_s_times_and_a_function_of_the_position() -> None:
    made, (batch,) = stage(), held(16)
    whole, logs = made.loss(batch, "classifier", 0)
    assert whole.item() == pytest.approx(math.log(2)) and not logs["accuracy_t0"].requires_grad
    torch.nn.init.normal_(made.modules["classifier"].out[2].linear.weight)  # type: ignore[union-attr,index]
    whole = made.loss(batch, "classifier", 0)[0]
    halves = [
        made.loss({k: v[rows] for k, v in batch.items()}, "classifier", 0)[0] for rows in (slice(8), slice(8, 16))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)
    assert made.loss({**batch, "position": batch["position"] + 16}, "classifier", 0)[0] != whole
    assert all(p.grad is None for p in made.autoencoder.parameters())  # type: ignore[attr-defined]
