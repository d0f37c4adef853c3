"""What is said of a latent: flat spectrum of white noise, the bin of a sinusoid, orthonormal components, no noise no loss."""

import numpy as np
import pytest
import torch

from ldmlab.metrics import latents
from ldmlab.metrics.reconstruction import psnr, rounded


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_spectrum_of_white_noise_is_flat() -> None:
    found = latents.spectrum(3.0 * noise(400, 2, 16, 16) + 5)  # neither scale nor mean matters
    assert found.cycles_F.tolist() == list(range(9)) and found.power_CF.shape == (2, 9)
    np.testing.assert_allclose(found.power_CF, 1, atol=0.12)  # ring 0 is one number per image: 400 of them


@pytest.mark.parametrize("k", [1, 3, 8])
def test_spectrum_of_a_sinusoid_peaks_in_its_bin(k: int) -> None:
    x = np.arange(16)
    wave = np.cos(2 * np.pi * k * x / 16)[None, None, None, :].repeat(16, axis=2)
    power = latents.spectrum(wave).power_CF[0]
    assert power.argmax() == k and np.delete(power, k).max() < 1e-12 * power[k]
    with pytest.raises(ValueError, match="square"):
        latents.spectrum(wave[:, :, :8])


def test_components_are_orthonormal_reproducible_and_ordered() -> None:
    mix = noise(5, 5, seed=1) * np.array([9, 4, 2, 1, 0.5])
    z = np.einsum("nchw,dc->ndhw", noise(20, 5, 6, 6), mix)
    found = latents.pca(z)
    np.testing.assert_allclose(found.basis_CP.T @ found.basis_CP, np.eye(3), atol=1e-12)
    assert (np.diff(found.share_P) <= 0).all() and found.share_P.sum() <= 1
    assert all(found.basis_CP[np.abs(b).argmax(), i] > 0 for i, b in enumerate(found.basis_CP.T))
    again = latents.pca(z[::-1])  # the order of the images is no part of it
    np.testing.assert_allclose(again.basis_CP, found.basis_CP, atol=1e-9)
    spread = latents.pca_spread(z, found)
    np.testing.assert_array_equal(latents.pca_rgb(z, found, spread), latents.pca_rgb(z, again, spread))


def test_two_channels_have_two_colours() -> None:
    z = noise(2, 2, 4, 4)
    rgb = latents.pca_rgb(z, latents.pca(z), np.ones(2))
    assert rgb.shape == (2, 4, 4, 3) and rgb.dtype == np.uint8 and (rgb[..., 2] == 128).all()
    at_mean = np.broadcast_to(latents.pca(z).mean_C[None, :, None, None], (1, 2, 4, 4))
    assert set(np.unique(latents.pca_rgb(at_mean, latents.pca(z), np.ones(2)))) <= {127, 128}


def test_histogram_integrates_to_one_less_its_tails() -> None:
    found = latents.histograms(noise(50, 3, 8, 8))
    width = found.edges_J[1] - found.edges_J[0]
    np.testing.assert_allclose(found.density_CJ.sum(axis=1) * width, 0.999, atol=2e-3)
    assert found.edges_J[0] == -found.edges_J[-1]
    assert latents.histograms(np.zeros((2, 1, 2, 2))).density_CJ.sum() > 0


def test_correlation() -> None:
    x = noise(20, 1, 8, 8)
    z = np.concatenate([x, -2 * x, noise(20, 1, 8, 8, seed=1), np.ones_like(x)], axis=1)
    found = latents.correlation(z)
    np.testing.assert_allclose(found[:2, :2], [[1, -1], [-1, 1]], atol=1e-12)
    assert abs(found[0, 2]) < 0.1 and (found[3] == 0).all()


def test_noised_decoding_begins_at_the_reconstruction_and_ends_in_noise() -> None:
    z = torch.from_numpy(noise(4, 3, 16, 16)).float().clamp(-2, 2) / 2.2
    image8 = rounded(z)

    def decode(x: torch.Tensor) -> torch.Tensor:
        return x * 0.9  # a decoder that loses something

    n = torch.from_numpy(noise(4, 3, 16, 16, seed=1)).float()
    found = latents.noised(decode, z, image8, n, std=0.4)
    reconstruction = psnr(image8, rounded(decode(z))).numpy()
    np.testing.assert_array_equal(found.additive_SN[0], reconstruction)  # σ = 0
    np.testing.assert_array_equal(found.preserving_SN[0], reconstruction)
    assert (np.diff(found.additive_SN.mean(axis=1)) < 0).all() and found.additive_SN.shape == (8, 4)
    alone = psnr(image8, rounded(decode(0.4 * n))).numpy()  # σ = 1: nothing of z is left
    np.testing.assert_array_equal(found.preserving_SN[-1], alone)
