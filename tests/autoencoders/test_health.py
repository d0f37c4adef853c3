"""Each guard sees its trouble, keeps silent on a healthy run, and speaks once."""

import json
from pathlib import Path

import pytest
from whole_commands import run_here

from ldmlab.autoencoders.health import GUARDS, Health

HEALTHY = {
    "kl_bits": 6.0, "latent_std": 1.0, "codebook_usage_window": 0.7, "adaptive_weight": 30.0, "discriminator_loss": 0.7,
    "discriminator_logits_real": 0.4, "discriminator_logits_fake": -0.3,
}  # fmt: skip
TROUBLE = {
    "codebook usage": {"codebook_usage_window": 0.2},
    "discriminator wins": {"discriminator_loss": 0.01},
    "discriminator dead": {"discriminator_logits_real": 0.001, "discriminator_logits_fake": 0.002},
    "adaptive weight": {"adaptive_weight": 1e4},
    "KL collapse": {"kl_bits": 1e-4},
    "KL explosion": {"kl_bits": 900.0},
    "latent drift": {"latent_std": 2.5},
}


def run(rows: list[dict[str, float]]) -> list[str]:
    health = Health()
    return [text for i, row in enumerate(rows) for text in health.health_check(row, (i + 1) / len(rows))]


def test_a_healthy_run_is_silent() -> None:
    noisy = [{k: v * (1 + 0.3 * (-1) ** i) for k, v in HEALTHY.items()} for i in range(40)]
    assert run(noisy) == []


def test_every_guard_has_a_case() -> None:
    assert {guard.name for guard in GUARDS} == set(TROUBLE)


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_named_once_with_an_option_to_turn(name: str) -> None:
    news = run([HEALTHY] * 20 + [HEALTHY | TROUBLE[name]] * 10)
    assert len(news) == 1 and news[0].startswith(f"{name}: ") and "ae" in news[0].partition("urn:")[2]
    again = run([HEALTHY] * 20 + [HEALTHY | TROUBLE[name]] * 5 + [HEALTHY] * 5 + [HEALTHY | TROUBLE[name]] * 5)
    assert len(again) == 2, "a trouble that went away and came back is said again"


def test_one_bad_row_is_no_state() -> None:
    for trouble in TROUBLE.values():
        assert run([HEALTHY] * 20 + [HEALTHY | trouble] + [HEALTHY] * 5) == []


@pytest.mark.slow
def test_a_real_collapse_is_told(tmp_path: Path) -> None:
    """A KL weight a million times too large: the posterior becomes the prior within a few hundred steps."""
    words = [
        "data.train_images=64", "data.val_images=8", "data.resolution=16", "debug=tiny", "ae.network.width=8", "until=autoencoder",
        "ae.regulariser.weight=100",
        "ae.regulariser.initial_logvar=0", "ae.fit.images=320", "ae.fit.lr=1e-2", "ae.fit.warmup=0",
        "runtime.log_seconds=0.01", "runtime.threads=1", f"store={tmp_path}",
    ]  # fmt: skip
    done = run_here("train", words)
    assert done.returncode == 0, done.stderr
    assert "warning at" in done.stderr and "KL collapse" in done.stderr
    (file,) = tmp_path.glob("autoencoder/*/warnings.jsonl")
    assert [row["text"].split(":")[0] for row in map(json.loads, file.read_text().splitlines())].count(
        "KL collapse"
    ) == 1
