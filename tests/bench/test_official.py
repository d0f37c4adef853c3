"""The official step computes what ours does; only what it remembers differs."""

import pytest
import torch
from torch import Tensor

from ldmlab import build
from ldmlab.bench import work
from ldmlab.bench.autoencoder import compare_autoencoder
from ldmlab.bench.official import OfficialStep, PlainAttention, PlainNormSwish, official_layers
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.training.autoencoder_loss import AutoencoderLoss

SMALL = ["ae.network.width=16", "ae.network.blocks=1", "data.resolution=32", "ae.loss.norm_images=2"]


def gradients(loss: Tensor, module: torch.nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("words", [["ae=kl_f4"], ["ae=vq_f4", "ae/loss/perceptual=none"]])
def test_losses_and_gradients_are_ours(words: list[str]) -> None:
    cfg = load([*words, *SMALL]).cfg
    with work.any_weights(cfg) as (cfg, note):
        assert ("random weights" in note) == (len(words) == 1)
        ours, terms = build.autoencoder(cfg).double(), build.first_stage_loss(cfg, None).double()
    plain = official_layers(build.autoencoder(cfg).double())
    kinds = {type(m) for m in plain.modules()}
    assert {PlainNormSwish, PlainAttention} <= kinds
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    noise = torch.randn(2, *ours.latent_shape(32), dtype=torch.float64) if ours.stochastic else None

    class Given(work.AnyNoise):
        def randn(self, purpose: object, position_B: object, shape: object, device: object) -> Tensor:
            assert noise is not None
            return noise

    stage = AutoencoderLoss(ours, terms, Given(0))
    batch = {"image": image, "position": torch.arange(2)}
    official = OfficialStep(plain, terms, {})
    for player, expected, theirs in (
        ("autoencoder", official.autoencoder_loss(image, noise), plain),
        ("discriminator", official.discriminator_loss(image, noise), terms.discriminator),
    ):
        got = stage.loss(batch, player, 2**62)[0]
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
        mine = ours if player == "autoencoder" else terms.discriminator
        for g, w in zip(gradients(got, mine), gradients(expected, theirs), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6 * float(w.abs().max()) + 1e-12)


@pytest.mark.slow
def test_memory_of_a_step_is_below_the_official_one() -> None:
    """kl_f8 at half its width, 128 px, batch 2, no LPIPS; with it, at full width, 256 px and batch 4 the ratio is 0.59."""
    words = ["ae=kl_f8", "ae.network.width=64", "data.resolution=128", "bench.batch_size=2", "ae.loss.norm_images=2"]
    cfg = load([*words, "bench.seconds=0.001", "ae/loss/perceptual=none"]).cfg
    official, ours, checkpointing = compare_autoencoder(cfg, [], torch.device("cpu")).rows
    assert ours["memory"] <= 0.85
    assert checkpointing["peak_bytes"] <= ours["peak_bytes"] < official["peak_bytes"]


@pytest.mark.parametrize("word", ["ae=identity", "ae=kl_f4_small"])
def test_first_stages_without_an_official_step(word: str) -> None:
    with pytest.raises(ConfigError, match="compare=autoencoder"):
        compare_autoencoder(
            load([word, "ae/loss/perceptual=shapes"] if "small" in word else [word]).cfg, [], torch.device("cpu")
        )
