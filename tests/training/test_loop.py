"""The order of events, on a stage whose every number is known."""

import json
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
from ldmlab.errors import TrainingError
from ldmlab.store.checkpoint import Checkpoints
from ldmlab.training.ema import EMA
from ldmlab.training.loop import (
    Events,
    Progressed,
    Stopped,
    cooldown_begins,
    fit,
    images_at,
    learning_rate,
    total_steps,
)
from ldmlab.training.tracking import Tracker


class Points:
    resolution, flip, fields, class_names = 2, False, (), ()

    def __len__(self) -> int:
        return 23

    def __getitems__(self, indices: list[int]) -> list[dict]:
        return [{"image": np.full((2, 2, 3), 10 * i, np.uint8)} for i in indices]


class Regression:
    """Two players on one batch: `main` fits its input's mean, `other` a constant; `other` sleeps for the first 8 images."""

    players = ("main", "other")

    def __init__(self, poison_at: int | None = None, signal_at: int | None = None):
        torch.manual_seed(0)
        self.modules: dict[str, nn.Module] = {"main": nn.Linear(12, 4), "other": nn.Linear(1, 1)}
        self.poison_at, self.signal_at = poison_at, signal_at
        self.calls: list[tuple[str, int]] = []

    def active(self, player: str, images_seen: int) -> bool:
        return player == "main" or images_seen >= 8

    def on_step_end(self, gather: Any) -> dict[str, Tensor]:
        return {}

    def loss(self, batch: dict[str, Any], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls.append((player, images_seen))
        if self.signal_at == images_seen:
            os.kill(os.getpid(), signal.SIGTERM)
        if player == "other":
            return self.modules["other"](torch.ones(1, 1)).square().sum(), {}
        x = batch["image"].flatten(1)
        loss = (self.modules["main"](x) - x.mean(1, keepdim=True)).square().mean()
        if self.poison_at == images_seen:
            loss = loss * float("nan")
        return loss, {"loss": loss.detach(), "psnr": -loss.detach()}


def train(
    folder: Path, stage: Regression, images: int = 40, batch: int = 8, micro: int = 8, **kwargs: Any
) -> tuple[Progressed, EMA]:
    budget = Fit(images=images, batch_size=batch, lr=0.05, **kwargs)
    optimizers = {p: torch.optim.AdamW(m.parameters(), lr=1.0) for p, m in stage.modules.items()}
    average = EMA(stage.modules["main"], 0.9)
    folder.mkdir(parents=True, exist_ok=True)
    events = Events(snapshot=lambda n: (folder / f"snapshot-{n}").touch(), validate=lambda: {"psnr": 1.0},
                    validate_at=[0.5], log_seconds=1e-9)  # fmt: skip
    done = fit("toy", stage, Batches(Points(), batch, micro, 3, torch.device("cpu")), budget, optimizers, {"main": average},
               Accelerator(cpu=True), Checkpoints(folder), Tracker(folder), events)  # fmt: skip
    return done, average


def rows(folder: Path, split: str = "train") -> list[dict]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["split"] == split]


def test_counts_logs_snapshots_and_turns(tmp_path: Path) -> None:
    stage = Regression()
    done, _ = train(tmp_path, stage, images=37, snapshots=[0.2, 1.0])
    assert (done.images, done.steps) == (40, 5)  # 37 images are 5 whole batches of 8
    assert stage.calls == [("main", 0), *[(p, n) for n in (8, 16, 24, 32) for p in ("main", "other")]]
    assert [r["images"] for r in rows(tmp_path)] == [8, 16, 24, 32, 40]
    assert "other_loss" in rows(tmp_path)[1] and "other_loss" not in rows(tmp_path)[0]
    assert [r["images"] for r in rows(tmp_path, "val")] == [16]
    assert sorted(p.name for p in tmp_path.glob("snapshot-*")) == ["snapshot-40", "snapshot-8"]
    assert rows(tmp_path)[-1]["loss"] < rows(tmp_path)[0]["loss"]


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    whole, cut = Regression(), Regression()
    train(tmp_path / "a", whole, clip=0.5)
    train(tmp_path / "b", cut, micro=2, clip=0.5)
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)
    assert torch.allclose(whole.modules["main"].weight, cut.modules["main"].weight, atol=1e-6)


@pytest.mark.parametrize("stop", [8, 24])
def test_signal_then_the_same_call_is_bit_identical(tmp_path: Path, stop: int) -> None:
    straight = Regression()
    _, average = train(tmp_path / "a", straight)
    with pytest.raises(Stopped, match=f"SIGTERM at {stop + 8} images"):
        train(tmp_path / "b", Regression(signal_at=stop))
    resumed = Regression()
    done, average_b = train(tmp_path / "b", resumed)
    assert resumed.calls[0] == ("main", stop + 8)
    assert done.steps == 5
    for player in straight.players:
        for a, b in zip(straight.modules[player].parameters(), resumed.modules[player].parameters(), strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(average.shadow, average_b.shadow, strict=True))
    drop = ("time", "images_per_second")
    strip = [[{k: v for k, v in r.items() if k not in drop} for r in rows(tmp_path / x)] for x in "ab"]
    assert strip[0] == strip[1]


def test_non_finite_loss_names_step_term_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"toy: 'gradient_norm' is nan at step 3 \(images 24\).*no checkpoint"):
        train(tmp_path, Regression(poison_at=16))
    with pytest.raises(Stopped):
        train(tmp_path / "b", Regression(signal_at=8))
    with pytest.raises(
        TrainingError, match=r"'gradient_norm' is nan at step 3 .*last good checkpoint is .*000000000016"
    ):
        train(tmp_path / "b", Regression(poison_at=16))


def test_durations() -> None:
    budget = Fit(images=100, batch_size=8, lr=1.0, warmup=32)
    assert total_steps(budget) == 13
    assert [images_at(budget, f) for f in (0.0, 0.5, 1.0)] == [8, 48, 104]
    assert [learning_rate(budget, n) for n in (0, 8, 24, 32, 80)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    budget = Fit(images=100, batch_size=8, lr=1.0, warmup=16, cooldown=32)  # 13 steps, 104 images
    assert [learning_rate(budget, n) for n in (0, 8, 64, 72, 80, 96)] == [0.5, 1.0, 1.0, 1.0, 0.75, 0.25]


def test_moments_are_fractions_or_counts() -> None:
    budget = Fit(images=100, batch_size=8, lr=1.0)  # 13 steps, 104 images
    assert [images_at(budget, moment) for moment in (0.5, 1.0, 8, 24, 25, 100)] == [48, 104, 8, 24, 32, 104]
    longer = Fit(images=1000, batch_size=8, lr=1.0)
    assert images_at(longer, 100) == images_at(budget, 1.0)  # the end of one is a moment of the other


def test_two_budgets_agree_up_to_the_first_cool_down() -> None:
    """`cooldown_begins` is the last step border up to which every step's rate is that of a training without end."""
    random = np.random.default_rng(0)
    for _ in range(300):
        images, batch, cooldown, warmup = (
            int(random.integers(low, high)) for low, high in ((1, 200), (1, 20), (0, 250), (0, 90))
        )
        budget = Fit(images=images, batch_size=batch, lr=0.5, cooldown=cooldown, warmup=warmup)
        endless = Fit(images=10**6, batch_size=batch, lr=0.5, warmup=warmup)
        begins, end = cooldown_begins(budget), total_steps(budget) * batch
        equal = [learning_rate(budget, n) == learning_rate(endless, n) for n in range(0, begins, batch)]
        assert begins % batch == 0 and 0 <= begins <= end and all(equal), budget
        # one step more begins within the cool-down, or exactly at its start
        assert begins == end or end - begins <= cooldown, budget


def test_the_state_after_a_step_does_not_depend_on_the_process(tmp_path: Path) -> None:
    """Dropout draws from PyTorch's own generator: whatever was drawn before, a resumed run draws what a straight one does."""

    def stage(signal_at: int | None = None) -> Regression:
        made = Regression(signal_at=signal_at)
        made.modules["main"] = nn.Sequential(nn.Dropout(0.5), made.modules["main"])
        return made

    straight, resumed = stage(), stage()
    train(tmp_path / "a", straight)
    with pytest.raises(Stopped):
        train(tmp_path / "b", stage(signal_at=16))
    torch.rand(7)
    train(tmp_path / "b", resumed)
    for a, b in zip(straight.modules["main"].parameters(), resumed.modules["main"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_metrics_rewind_drops_what_will_be_written_again(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for images in (8, 16, 24):
        tracker.log({"loss": 1.0}, images, images // 8, "train", 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 32, "lo')  # cut off by a kill
    tracker.rewind(16)
    assert [r["images"] for r in rows(tmp_path)] == [8, 16]
