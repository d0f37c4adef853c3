"""eval.noise=pixels: the noise of a latent is that of the pixels in orthonormal components, white, and shared by latents of other f."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from option_words import replacing
from torch import Tensor
from torch.nn import functional as F

from ldmlab.autoencoders.linear_path import patch_moments, principal_components
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.noise_basis import PixelNoise
from ldmlab.pipeline.run import execute, prepare
from ldmlab.pipeline.sampling import image_seed
from ldmlab.randomness import ImageNoise
from ldmlab.store.checkpoint import load_tensors

R, SEEDS = 16, [3, 1, 4]
WORDS = [
    "debug=tiny", "data.resolution=32", "data.train_images=300", "data.val_images=16", "ae=pca_f4", "ldm=gaussian", "cond=none",
    "runtime.threads=1", "until=samples", "eval=none", "eval.noise=pixels", "eval.samples=20",
]  # fmt: skip


def components(f: int, c: int) -> Tensor:
    """Of smooth pictures, so that no two variances are nearly equal."""
    pictures = F.interpolate(
        torch.randn(400, 3, 5, 5, generator=torch.Generator().manual_seed(0)), size=R, mode="bicubic"
    )
    return principal_components(patch_moments(f, [pictures]).covariance())[1][:c].float()


def back(noise_BCHW: Tensor, basis_CP: Tensor, f: int) -> Tensor:
    return F.pixel_shuffle(torch.einsum("cp,bchw->bphw", basis_CP, noise_BCHW), f)


@pytest.mark.parametrize("f,c", [(2, 12), (4, 3), (8, 20), (16, 8)])
def test_projected_noise_is_white(f: int, c: int) -> None:
    """The covariance of B n is B Bᵀ exactly; drawn, it is that to within its own error."""
    basis_CP = components(f, c)
    torch.testing.assert_close(basis_CP @ basis_CP.T, torch.eye(c), atol=2e-6, rtol=0)
    noise = PixelNoise(range(4000), R, f, basis_CP)()
    assert noise.shape == (4000, c, R // f, R // f) and noise.dtype == torch.float32
    flat_ND = noise.flatten(1).double()
    covariance_DD = flat_ND.T @ flat_ND / len(flat_ND)
    assert float((covariance_DD - torch.eye(flat_ND.shape[1])).abs().max()) < 6 / 4000**0.5


def test_latents_of_other_f_share_the_noise_of_the_pixels() -> None:
    pixels = ImageNoise(SEEDS, (3, R, R))()
    for f in (2, 4):
        whole = components(f, 3 * f * f)
        torch.testing.assert_close(back(PixelNoise(SEEDS, R, f, whole)(), whole, f), pixels, atol=1e-5, rtol=0)
    few = components(8, 5)
    torch.testing.assert_close(
        PixelNoise(SEEDS, R, 8, few)(),
        torch.einsum("cp,bphw->bchw", few, F.pixel_unshuffle(pixels, 8)),
        atol=1e-5,
        rtol=0,
    )


def test_pixels_themselves_get_the_noise_itself_and_the_batch_changes_no_bit() -> None:
    ours, plain = PixelNoise(SEEDS, R, 1, None), ImageNoise(SEEDS, (3, R, R))
    assert torch.equal(ours(), plain()) and torch.equal(ours(), plain())  # the next draw too
    basis_CP = components(4, 3)
    many, alone = PixelNoise(SEEDS, R, 4, basis_CP), PixelNoise(SEEDS[1:2], R, 4, basis_CP)
    assert torch.equal(many()[1], alone()[0]) and torch.equal(many()[1], alone()[0])


def test_a_run_draws_from_it(tmp_path: Path) -> None:
    """Samples of a Gaussian are a linear map of the noise: they are those of the pixels' noise, and the card says so."""
    words = [*WORDS, f"store={tmp_path}"]
    assert execute(load(words), " ".join(words)) is not None
    (basis,), (fit,) = (
        tmp_path.glob("noise_basis/f4_c3-*/basis.safetensors"),
        tmp_path.glob("denoiser/*/weights.safetensors"),
    )
    (images,), (first_stage,) = (
        tmp_path.glob("samples/*/images.npy"),
        tmp_path.glob("autoencoder/*/autoencoder.safetensors"),
    )
    plan, weights = prepare(load(words)), load_tensors(fit)
    noise = PixelNoise([image_seed(0, i) for i in range(20)], 32, 4, load_tensors(basis)["basis_CP"])()
    z = (
        weights["mean_KD"]
        + noise.flatten(1) @ weights["basis_DD"].T * weights["variance_D"].sqrt() @ weights["basis_DD"]
    )
    from ldmlab import build

    ae = build.autoencoder(plan.resolved.cfg)
    ae.load_state_dict(load_tensors(first_stage))
    expected = ae.decode(z.view(20, 3, 8, 8)).clamp(-1, 1).add(1).mul(127.5).permute(0, 2, 3, 1).detach().numpy()
    assert np.abs(np.load(images) - expected).max() <= 0.6  # 8 bits
    card = json.loads((images.parent / "card.json").read_text())
    speed = card["sampling"]
    assert speed["images"] == 20 and speed["threads"] == 1 and speed["clock"] == "CPU seconds"
    assert 0 < speed["sampler_seconds"] < 20 and 0 < speed["decoder_seconds"] < 20


def test_ids_and_what_is_shared(tmp_path: Path) -> None:
    def found(*other: str) -> dict[str, str]:
        plan = prepare(load(replacing(WORDS, [*other, f"store={tmp_path}"])))
        return {stage.name: stage.address.id for stage in plan.order}

    pixels, latent = found(), found("eval.noise=latent")
    assert (
        "noise_basis" not in latent
        and pixels["denoiser"] == latent["denoiser"]
        and pixels["samples"] != latent["samples"]
    )
    one, other = found("ae=identity"), found("ae=identity", "eval.noise=latent")
    assert one == other  # the same noise, so the same samples
    assert found("ae=kl_f4_quick")["noise_basis"] == pixels["noise_basis"] == found("ldm.seed=5")["noise_basis"]
    assert found("ae=pca_f8")["noise_basis"] != pixels["noise_basis"]


def test_more_channels_than_a_patch_has_numbers(tmp_path: Path) -> None:
    wrong = r"eval\.noise=pixels: this latent has 14 channels, and a patch of 2x2 .* gives 12 .* Set eval\.noise=latent"
    with pytest.raises(ConfigError, match=wrong):
        prepare(load(replacing(WORDS, ["ae=kl_f2", "ae.network.c=14", f"store={tmp_path}"])))
