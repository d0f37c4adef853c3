"""tune=lr: the rate of the lowest loss, by a quiet criterion; its short runs resume; the denoiser trains with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from option_words import replacing

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError, TrainingError
from ldmlab.pipeline import learning_rate
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.learning_rate import LearningRateStage, judged, section
from ldmlab.pipeline.run import execute, prepare
from ldmlab.randomness import Draws
from ldmlab.training.diffusion_loss import DiffusionLoss

TINY = [
    "debug=tiny", "ldm=unet_study", "ae=pca_f4", "data.resolution=16", "data.train_images=64", "data.val_images=64",
    "data.cached=false", "tune=lr", "ldm.fit.images=160", "ldm.fit.warmup=0", "ldm.fit.cooldown=0", "tune.share=0.4",
    "until=denoiser", "eval=none", "runtime.threads=1", "runtime.log_seconds=1e-9",
]  # fmt: skip


def run(losses: Any, why: str | None = None) -> dict[str, Any]:
    return {"losses": losses, "why": why, "seconds": 1.0}


def test_the_lowest_mean_wins_and_differences_are_paired() -> None:
    shared = np.random.default_rng(0).normal(1.0, 0.5, 64)  # how hard each group is: the same for all rates
    found = judged(
        {1e-4: run((shared + 0.02).tolist()), 3e-4: run(shared.tolist()), 1e-3: run((shared + 0.05).tolist())}
    )
    assert found["rate"] == 3e-4 and found["notes"] == []
    low, best, _ = found["rates"]
    assert low["difference"] == pytest.approx(0.02) and low["standard_error"] < 1e-12 < shared.std()
    assert best["loss"] == pytest.approx(shared.mean()) and best["difference"] == 0
    assert [row[0] for row in section(found)["table"]["rows"]] == ["0.0001", "0.0003 (chosen)", "0.001"]


def test_standard_error_of_a_known_difference() -> None:
    apart = [0.1, 0.3, 0.1, 0.3]
    row = judged({1.0: run([1.0] * 4), 2.0: run([1 + a for a in apart])})["rates"][1]
    assert row["difference"] == pytest.approx(0.2)
    assert row["standard_error"] == pytest.approx(np.std(apart, ddof=1) / 2)


def test_a_rate_that_diverged_loses_and_an_edge_is_said() -> None:
    found = judged({1e-4: run([1.0, 1.1]), 3e-4: run([0.9, 1.0]), 1e-3: run(None, "loss is nan at step 3")})
    assert found["rate"] == 3e-4 and found["rates"][2]["why"] == "loss is nan at step 3"
    edge = judged({1e-4: run([1.0, 1.1]), 3e-4: run([0.9, 1.0])})
    assert "the largest that was tried" in edge["notes"][0]
    tie = judged({1e-4: run([1.0, 1.2]), 3e-4: run([1.1, 1.0]), 1e-3: run([1.0, 2.0])})
    assert any("cannot be told" in note for note in tie["notes"])
    with pytest.raises(TrainingError, match="no rate"):
        judged({1e-4: run(None, "nan"), 3e-4: run(None, "nan")})


def test_its_seed_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune\.seed=0 is also seed"):
        prepare(load([*TINY, f"store={tmp_path}", "tune.seed=0"]))


def test_seeds_of_a_study_share_one_search_and_the_network_does_not(tmp_path: Path) -> None:
    def ids(*words: str) -> tuple[str, str]:
        plan = prepare(load([*TINY, f"store={tmp_path}", *words]))
        return plan.named("learning_rate").address.id, plan.address("denoiser").id

    base, other_seed, wider = ids(), ids("ldm.seed=1"), ids("ldm.network.width=64")
    assert base[0] == other_seed[0] and base[1] != other_seed[1]
    assert base[0] != wider[0] and base[1] != wider[1]
    assert ids("ldm.fit.lr=2e-3")[0] != base[0] and ids("tune.val_images=32")[1] != base[1]
    cooled = prepare(load([*TINY, f"store={tmp_path}", "eval.cooldown=0.25"])).named("cooldown").address
    assert cooled.upstream["learning_rate"] == base[0]  # a branch of the training learns at its rate
    untuned = [word for word in TINY if not word.startswith("tune")]
    assert prepare(load([*untuned, f"store={tmp_path}"])).address("denoiser").id != base[1]


def test_a_run_trains_with_the_rate_that_was_found_and_an_interrupted_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    execute(load([*TINY, f"store={whole}"]), "python src/train.py")
    (found,) = (json.loads(path.read_text()) for path in whole.glob("learning_rate/*/learning_rate.json"))
    (log,) = whole.glob("denoiser/*/metrics.jsonl")
    rates = {row["lr"] for row in map(json.loads, log.read_text().splitlines()) if "lr" in row}
    assert rates == {found["rate"]} and len(found["rates"]) == 3
    (record,) = (json.loads(path.read_text()) for path in whole.glob("runs/*/run.json"))
    assert record["tuned"] == {"ldm.fit.lr": found["rate"]}
    (card,) = (json.loads(path.read_text()) for path in whole.glob("denoiser/*/card.json"))
    assert card["learning_rate"]["rate"] == found["rate"]
    assert not list(whole.glob("learning_rate/*/runs/*/*.safetensors"))

    def dies(self: LearningRateStage, *args: Any) -> float:
        if args[2] == self.rates[1]:
            raise KeyboardInterrupt
        return trying(self, *args)

    trying = LearningRateStage._try
    monkeypatch.setattr(LearningRateStage, "_try", dies)
    with pytest.raises(KeyboardInterrupt):
        execute(load([*TINY, f"store={broken}"]), "python src/train.py")
    monkeypatch.setattr(LearningRateStage, "_try", trying)
    (kept,) = broken.glob("learning_rate/*/runs/*/losses.json")
    before = kept.stat().st_mtime_ns
    execute(load([*TINY, f"store={broken}"]), "python src/train.py")
    assert kept.stat().st_mtime_ns == before
    (again,) = (json.loads(path.read_text()) for path in broken.glob("learning_rate/*/learning_rate.json"))
    assert again == found


def test_losses_are_of_fixed_images_times_and_noise(tmp_path: Path) -> None:
    """Two looks at one network agree to the last bit, or differences between rates would be differences between looks."""
    plan = prepare(load(replacing(TINY, ["ae=identity", f"store={tmp_path}"])))
    cfg, stage = plan.resolved.cfg, plan.stage(LearningRateStage)
    ctx = Context(cfg, plan, make_accelerator("cpu"))
    ae = build.autoencoder(cfg)
    model = build.denoiser(cfg, ae, plan.resolved.data)

    def look() -> list[float]:
        torch.rand(3)  # the global generator has no part in it
        return stage._losses(ctx, DiffusionLoss(model, ae, plan.resolved.objective, Draws(1), 0.0, learning_rate.GROUP))

    first = look()
    assert first == look() and len(first) == 64 // learning_rate.GROUP * learning_rate.PASSES
    assert len(set(first)) == len(first)
