"""Memory is counted before anything is built."""

from pathlib import Path

import pytest

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline import memory
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.run import execute, prepare

WORDS = ["data.train_images=64", "data.val_images=16", "data.cached=false"]
HUGE = [
    "ldm.network.width=16384",
    "ldm.network.multipliers=[1,8]",
    "ldm.network.attention_factors=[]",
]  # about 4e12 bytes


def test_bytes_are_weights_gradients_moments_and_averages(tmp_path: Path) -> None:
    resolved = prepare(load([*WORDS, f"store={tmp_path}"])).resolved
    assert resolved.cfg.ldm.fit.ema is not None
    assert memory.needed(resolved)["ldm"] == 5 * 4 * parameters_of(resolved.denoiser)
    raw = prepare(load([*WORDS, f"store={tmp_path}", "ldm.fit.ema=null", "eval.weights=raw"])).resolved
    assert memory.needed(raw)["ldm"] == 4 * 4 * parameters_of(raw.denoiser)
    linear = prepare(load([*WORDS, f"store={tmp_path}", "ae=pca_f4"])).resolved
    assert memory.needed(linear)["ae"] == 4 * parameters_of(linear.autoencoder)
    assert memory.complaint(resolved) is None


def test_what_cannot_fit_is_refused_before_it_is_built_and_noted_in_a_plan(tmp_path: Path) -> None:
    composed = load([*WORDS, *HUGE, f"store={tmp_path}"])
    said = r"ldm\.network needs [\d,]+ GB for its weights, gradients, Adam's moments and averages, and this machine has \d+ GB"
    with pytest.raises(ConfigError, match=said):
        execute(composed, "train")
    assert not (tmp_path / "denoiser").exists()
    assert any("GB" in note for note in prepare(composed).notes)
