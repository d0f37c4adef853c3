"""Which snapshots can be kept and scored, and what is said of raw weights in the middle of a high learning rate."""

from pathlib import Path

import pytest
from option_words import replacing

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline import snapshots
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare

BASE = [
    "debug=tiny", "data.resolution=32", "data.train_images=64", "data.val_images=16", "data.cached=false", "until=samples",
    "ldm.fit.images=128", "ldm.fit.batch_size=16", "ldm.fit.warmup=0",
]  # fmt: skip


def plan_of(root: Path, *words: str) -> Plan:
    return prepare(load(replacing([*BASE, f"store={root}"], words)))


def test_counts_and_fractions_name_the_same_snapshots(tmp_path: Path) -> None:
    words = ["ldm.fit.snapshots=[32,0.5,128]", "eval.at=[0.25,64,1.0]"]
    assert plan_of(tmp_path, *words).resolved.snapshots == [32, 64, 128]
    assert plan_of(tmp_path, "ldm.fit.snapshots=[20]", "eval.at=[20]").resolved.snapshots == [32]  # whole batches
    weak = ["guidance=autoguidance", "guidance.auto.snapshot=0.25", "ldm.fit.snapshots=[32]"]
    assert "(snapshot 0.25, 32 img)" in plan_of(tmp_path, *weak).rows[-1][1].what


@pytest.mark.parametrize(
    "words,said",
    [
        ("ldm.fit.snapshots=[256]", r"ldm\.fit\.snapshots=256 is a count of images.*from 16 to 128.*ldm\.fit\.images=256"),
        ("ae.fit.snapshots=[65]", r"ae\.fit\.snapshots=65 is a count.*from 8 to 64"),
        ("ldm.fit.snapshots=[8]", r"ldm\.fit\.snapshots=8 is a count of images.*steps from 16"),
        ("eval.at=[256]", r"eval\.at=256 is a count of images"),
        ("eval.at=[32]", r"eval\.at=32 is not among ldm\.fit\.snapshots=\[1\.0\].*ldm\.fit\.snapshots=\[1\.0,32\]"),
        ("ldm.fit.snapshots=[32,0.25]", r"ldm\.fit\.snapshots=\[0\.25, 1\.0, 32\] name the same step twice"),
        ("eval.cooldown=0.5 eval.ema_width=0.1 ldm.power_ema=[0.1]", r"eval\.cooldown=0\.5 and eval\.ema_width=0\.1 are two ways"),
        ("eval.cooldown=32 ldm.fit.cooldown=64", r"eval\.cooldown=32 cools each.*Use ldm\.fit\.cooldown=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_said(words: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_of(tmp_path, *words.split())


@pytest.mark.parametrize(
    "words,noted",
    [
        ("eval.weights=raw", ["128 (100%)"]),
        ("eval.weights=raw ldm.fit.cooldown=64 ldm.fit.snapshots=[64] eval.at=[64,1.0]", ["64 (100%)", "128 (25%)"]),
        ("eval.weights=raw ldm.fit.images=1024 ldm.fit.cooldown=512", []),  # the last step's rate is a 32nd
        ("eval.weights=raw eval.cooldown=0.5", []),
        ("eval.weights=ema", []),
        ("eval.ema_width=0.1 ldm.power_ema=[0.1]", []),
    ],
)
def test_raw_weights_at_a_high_rate_are_noted(words: str, noted: list[str], tmp_path: Path) -> None:
    notes = [note for note in plan_of(tmp_path, *words.split()).notes if "raw weights are scored" in note]
    assert len(notes) == bool(noted) and all(text in notes[0] for text in noted)


def test_what_a_training_leaves(tmp_path: Path) -> None:
    """Weights and one average at 32, 64 and the end; the optimiser's state at 32 and at 64, where the cool-down begins."""
    fit = load([*BASE, "ldm.fit.snapshots=[32]", "ldm.fit.cooldown=64"]).cfg.ldm.fit
    assert snapshots.states(fit) == {32, 64}
    assert snapshots.megabytes(fit, 1_000_000, 1) == pytest.approx(3 * 2 * 4 + 2 * 8)
    fit = load([*BASE, "ldm.fit.snapshots=[32]", "ldm.fit.cooldown=64", "ldm.fit.keep_state=false"]).cfg.ldm.fit
    assert snapshots.states(fit) == set() and snapshots.megabytes(fit, 1_000_000, 1) == pytest.approx(2 * 2 * 4)
