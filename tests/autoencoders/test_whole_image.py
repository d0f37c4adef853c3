"""The linear path of whole images against an explicit singular value decomposition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldmlab.autoencoders.linear_path import LinearPath
from ldmlab.autoencoders.whole_image import WholeImagePath
from ldmlab.errors import ConfigError, TrainingError


def pictures(n: int = 60, side: int = 16, seed: int = 0) -> torch.Tensor:
    """Smooth random images: neighbouring patches know of each other."""
    noise = torch.randn(n, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False).clamp(-1, 1)


def fitted(image_BCHW: torch.Tensor, f: int, c: int, **options: bool) -> WholeImagePath:
    path = WholeImagePath(f, c, image_BCHW.shape[2], **options)
    parts = image_BCHW.split(16)
    path.fit(parts)
    path.fit_encoder(parts)
    return path


def decoded(path: WholeImagePath | LinearPath, image_BCHW: torch.Tensor) -> torch.Tensor:
    return F.pixel_shuffle(path.decode(path.encode(image_BCHW)), path.f)


@pytest.mark.parametrize("whiten", [True, False])
def test_it_is_the_projection_on_the_principal_components_of_images(whiten):
    """f=4: 48 values a patch, all kept as coefficients, so nothing is lost before the components are taken."""
    image = pictures()
    path = fitted(image, 4, 2, whiten=whiten)
    x_ND = image.flatten(1).double().numpy()
    mean_D = x_ND.mean(0)
    basis_KD = np.linalg.svd(x_ND - mean_D, full_matrices=False)[2][: 2 * 16]
    want = (x_ND - mean_D) @ basis_KD.T @ basis_KD + mean_D
    np.testing.assert_allclose(decoded(path, image).flatten(1).numpy(), want, atol=2e-5)
    z_BCHW = path.encode(image)
    variance_C = z_BCHW.var((0, 2, 3), unbiased=False)
    wanted = torch.ones(2) if whiten else torch.tensor(1.0)
    torch.testing.assert_close(variance_C if whiten else variance_C.mean(), wanted, atol=2e-2, rtol=0)


def test_it_loses_less_than_components_of_patches():
    image = pictures()
    patch = LinearPath(4, 2)
    patch.fit([image])
    whole = fitted(image, 4, 2)
    lost = [(decoded(path, image) - image).square().mean().item() for path in (patch, whole)]
    assert lost[1] < 0.8 * lost[0]


def test_a_latent_says_most_of_its_own_patch():
    """Channel j at a position follows component j of the patch there, more than that of any other position."""
    image = pictures(400)
    patch = LinearPath(4, 2)
    patch.fit([image])
    z_NK, own_NK = fitted(image, 4, 2).encode(image).flatten(1), patch.encode(image).flatten(1)
    related_KK = torch.corrcoef(torch.cat([z_NK, own_NK], dim=1).T)[:32, 32:]
    assert (related_KK.argmax(1) == torch.arange(32)).all()
    assert related_KK.diagonal().min() > 0.5


def test_mirrored_images_count_when_they_are_asked_for():
    image = pictures(40)
    mirrored = torch.stack([image, image.flip(3)], dim=1).flatten(0, 1)
    a, b = fitted(image, 4, 2, mirror=True), fitted(mirrored, 4, 2)
    b.fit([image])
    b.fit_encoder([mirrored])
    torch.testing.assert_close(decoded(a, image), decoded(b, image), atol=1e-4, rtol=0)
    assert not torch.allclose(decoded(fitted(image, 4, 2), image), decoded(b, image), atol=1e-3)


def test_the_decoder_can_be_fitted_to_altered_latents():
    """A latent that comes back halved is decoded as if it were whole."""
    image = pictures()
    path = fitted(image, 4, 2)
    want = decoded(path, image)
    path.fit_decoder([(0.5 * path.encode(part), part) for part in image.split(16)])
    got = F.pixel_shuffle(path.decode(0.5 * path.encode(image)), 4)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


def test_other_sizes_are_refused():
    path = fitted(pictures(), 4, 2)
    with pytest.raises(ConfigError, match=r"image_size=16: .* not 32x32\. Set ae\.network\.image_size"):
        path.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"image_size=18 .* is not a multiple of f=4\. Set one: 16 or 20"):
        WholeImagePath(4, 2, 18)
    with pytest.raises(
        ConfigError, match=r"1,024 positions.* 6 a position.* twice c=8\. Set ae\.network\.image_size=null"
    ):
        WholeImagePath(16, 8, 512)


def test_too_few_images_are_named():
    with pytest.raises(TrainingError, match=r"vary in \d+ directions only, and the latent has 32 numbers"):
        fitted(pictures(20), 4, 2)
