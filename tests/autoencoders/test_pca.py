"""The linear first stage against NumPy's PCA and its own closed-form error."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.linear_path import LinearPath, patch_moments, patches
from ldmlab.autoencoders.pca import PCANetwork
from ldmlab.autoencoders.regularisers.fsq import FSQ
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.regularisers.none import NoRegulariser
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.errors import ConfigError, TrainingError


def pictures(n=48, size=16, seed=0):
    """Smooth random images, so that components and neighbours have something in common."""
    noise = torch.randn(n, 3, size // 4 + 2, size // 4 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, scale_factor=4, mode="bilinear")[:, :, 4:-4, 4:-4]
    grain = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed + 1))
    return (0.3 * smooth + 0.05 * grain).clamp(-1, 1)


def fitted(f, c, regulariser=None, images=None, **options):
    regulariser = regulariser or NoRegulariser()
    ae = Autoencoder(PCANetwork(f, c, regulariser.channels_in, **options), regulariser)
    images = pictures() if images is None else images
    ae.fit_linear(lambda: images.split(20))
    return ae


@pytest.mark.parametrize(("f", "c"), [(2, 2), (4, 3), (8, 10), (16, 5)])
def test_equals_numpy(f, c):
    image = pictures()
    ae = fitted(f, c, images=image)
    x_MP = patches(image.double(), f).numpy()
    mean_P = x_MP.mean(0)
    _, s, v_PP = np.linalg.svd(x_MP - mean_P, full_matrices=False)
    std_C = s[:c] / np.sqrt(len(x_MP))
    want_MC = (x_MP - mean_P) @ v_PP[:c].T / std_C
    got_MC = ae.moments(image).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    sign_C = np.sign((got_MC * want_MC).sum(0))
    np.testing.assert_allclose(got_MC, want_MC * sign_C, atol=2e-3)
    want_image = patches(ae(image).image_BCHW, f).double().numpy()
    np.testing.assert_allclose(want_image, want_MC * std_C @ v_PP[:c] + mean_P, atol=2e-4)


@pytest.mark.parametrize("whiten", [True, False])
def test_components_are_orthonormal_and_the_error_is_the_variance_left_over(whiten):
    image = pictures()
    for f, c in ((2, 3), (4, 7), (8, 20)):
        ae = fitted(f, c, images=image, whiten=whiten)
        basis_CP = ae.network.linear.basis_CP
        torch.testing.assert_close(basis_CP @ basis_CP.T, torch.eye(c), atol=1e-5, rtol=0)
        moments = patch_moments(f, [image])
        left = torch.linalg.eigvalsh(moments.covariance())[:-c].sum() / (3 * f * f)
        got = (ae(image).image_BCHW - image).square().mean()
        assert got.item() == pytest.approx(left.item(), rel=1e-4)
        std_C = ae.moments(image).transpose(0, 1).flatten(1).std(1, unbiased=False)
        scale = torch.ones(c) if whiten else std_C / std_C.square().mean().sqrt()
        torch.testing.assert_close(std_C, scale, atol=1e-3, rtol=0)


def test_no_other_linear_map_loses_less():
    """Eckart–Young: an orthonormal basis turned a little loses more."""
    image = pictures()
    ae = fitted(4, 3, images=image)
    x_MP = patches(image, 4) - ae.network.linear.mean_P
    generator = torch.Generator().manual_seed(3)
    best = (x_MP - x_MP @ ae.network.linear.basis_CP.T @ ae.network.linear.basis_CP).square().mean()
    for _ in range(5):
        turned, _ = torch.linalg.qr(ae.network.linear.basis_CP.T + 0.05 * torch.randn(48, 3, generator=generator))
        assert (x_MP - x_MP @ turned @ turned.T).square().mean() > best


def test_all_components_lose_nothing():
    ae = fitted(2, 12)
    torch.testing.assert_close(ae(pictures()).image_BCHW, pictures(), atol=1e-5, rtol=0)


def test_batches_and_order_do_not_matter_and_state_reloads_exactly():
    image = pictures()
    whole, cut, fresh = (Autoencoder(PCANetwork(4, 3, lambda c: c), NoRegulariser()) for _ in range(3))
    whole.fit_linear(lambda: [image])
    cut.fit_linear(lambda: image.flip(0).split(7))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value, atol=1e-5, rtol=0)
    fresh.load_state_dict(whole.state_dict())
    assert torch.equal(fresh(image).image_BCHW, whole(image).image_BCHW)


def test_a_wider_window_is_the_least_squares_decoder():
    image = pictures()
    narrow, wide = (fitted(4, 3, images=image, window=w) for w in (1, 3))
    errors = [(ae(image).image_BCHW - image).square().mean().item() for ae in (narrow, wide)]
    assert errors[1] < 0.95 * errors[0]
    z_BCHW = F.pad(wide.moments(image), (1, 1, 1, 1), mode="replicate")
    tap_MQ = F.unfold(z_BCHW, 3).transpose(1, 2).flatten(0, 1).double()
    tap_MQ = torch.cat([tap_MQ, tap_MQ.new_ones(len(tap_MQ), 1)], 1)
    patch_MP = patches(image, 4).double()
    best = patch_MP - tap_MQ @ torch.linalg.lstsq(tap_MQ, patch_MP).solution
    assert errors[1] == pytest.approx(best.square().mean().item(), rel=1e-3)


def test_kl_has_the_fixed_variance_that_was_asked_for():
    image = pictures()
    ae = fitted(4, 3, KL(initial_logvar=-8.0))
    posterior = ae.posterior(ae.moments(image))
    assert torch.equal(posterior.variance_BCHW, torch.full_like(posterior.mean_BCHW, -8.0).exp())
    assert torch.equal(ae(image).image_BCHW, fitted(4, 3)(image).image_BCHW)  # without noise it is PCA


def test_quantised_latents_get_the_decoder_of_least_squares():
    image = pictures()
    for regulariser in (FSQ(3, [8, 6, 5]), VQ(3, 64, start="kmeans")):
        ae = fitted(4, 3, regulariser, images=image)
        z_BCHW = ae.regulariser.project(ae.regulariser.sample(ae.moments(image)))
        error_BPHW = F.pixel_unshuffle(image - ae(image).image_BCHW, 4)
        # normal equations: what is lost has mean 0 and is uncorrelated with what the decoder read
        assert error_BPHW.mean((0, 2, 3)).abs().max() < 1e-5
        assert torch.einsum("bphw,bchw->pc", error_BPHW, z_BCHW).abs().max() / error_BPHW[:, 0].numel() < 1e-5


def test_what_it_refuses():
    with pytest.raises(ConfigError, match=r"ae\.network\.c=13: a 2x2 patch has 12 values"):
        PCANetwork(2, 13, lambda c: c)
    with pytest.raises(ConfigError, match=r"ae\.network\.f=33"):
        PCANetwork(33, 1, lambda c: c)
    with pytest.raises(TrainingError, match="no training image"):
        LinearPath(2, 2).fit([])
    with pytest.raises(TrainingError, match=r"vary in 0 directions"):
        LinearPath(2, 2).fit([torch.zeros(2, 3, 8, 8)])
    with pytest.raises(TrainingError, match=r"c=4: the training images' 4x4 patches vary in 3 directions"):
        LinearPath(4, 4).fit([torch.rand(1, 3, 8, 8)])  # four patches
    LinearPath(4, 3).fit([torch.rand(1, 3, 8, 8)])
