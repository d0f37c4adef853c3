"""One pass of a first stage: scores equal to their own functions, parameters counted once, batches of no consequence."""

import numpy as np
import pytest
import torch

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.autoencoders.identity import IdentityNetwork
from ldmlab.autoencoders.regularisers.base import Regulariser
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.regularisers.none import NoRegulariser
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.data.batches import to_float
from ldmlab.metrics.rate import kl_bits
from ldmlab.metrics.reconstruction import psnr, rounded
from ldmlab.metrics.reconstruction_pass import Pass, parameters

N = 12
CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (N, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def read(rows: list[int]) -> torch.Tensor:
    return IMAGES[rows]


def first_stage(regulariser: Regulariser) -> Autoencoder:
    torch.manual_seed(0)
    network = ConvNetwork(4, [1, 2, 2], regulariser.channels_in, width=32, blocks=1)
    ae = Autoencoder(network, regulariser).eval()
    ae.set_scale(2.0)
    return ae


def seen(regulariser: Regulariser, batch_size: int = 5) -> Pass:
    return Pass(first_stage(regulariser), read, N, batch_size, CPU, None)


@pytest.mark.parametrize("regulariser", [KL(), VQ(4, 64)])
def test_scores_are_those_of_the_images(regulariser: Regulariser) -> None:
    found, ae = seen(regulariser), first_stage(regulariser)
    with torch.no_grad():
        x = to_float(IMAGES)
        psnr_N = psnr(rounded(x), rounded(ae.decode(ae.encode(x)))).numpy()
    np.testing.assert_allclose(found.per_image()["psnr"], psnr_N, atol=1e-3)  # (batches round differently)
    scores = found.scores(20, 0)
    assert scores["psnr"]["value"] == pytest.approx(psnr_N.mean(), abs=1e-3)
    latent = found.latent()
    np.testing.assert_allclose(latent["noised_additive"][0], psnr_N, atol=1e-3)  # σ = 0 is the reconstruction
    assert latent["noised_additive"].shape == (8, N) and ("psnr_of_samples" in latent) == regulariser.stochastic
    assert latent["pca_maps"].shape == (8, 8, 8, 3) and latent["power"].shape == (4, 5)
    shown = found.shown()
    np.testing.assert_array_equal(shown["original"], IMAGES[:8])
    error = np.square(shown["original"].astype(float) - shown["reconstruction"]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(10 * np.log10(255**2 / error), psnr_N[:8], atol=1e-3)


def test_bits_of_a_posterior() -> None:
    found, ae = seen(KL()), first_stage(KL())
    with torch.no_grad():
        posterior = ae.posterior(ae.moments(to_float(IMAGES)))
    assert posterior.variance_BCHW is not None
    bits = float(kl_bits(posterior.mean_BCHW, posterior.variance_BCHW).mean())
    scores = found.scores(20, 0)
    assert scores["bits_per_pixel"]["value"] == pytest.approx(bits / 1024, rel=1e-5)
    assert scores["kl_bits"]["value"] == pytest.approx(bits / (4 * 64), rel=1e-5)


def test_bits_of_a_codebook() -> None:
    scores, facts = seen(VQ(4, 64)).scores(20, 0), seen(VQ(4, 64)).facts()
    assert scores["bits_per_pixel"] == 6 / 16 and facts["codes"] == 64  # log2 64 per 4x4 pixels
    assert scores["entropy_bits_per_pixel"]["value"] <= 6 / 16


def test_facts_of_shape_parameters_and_speed() -> None:
    ae = first_stage(VQ(4, 64))
    count = parameters(ae)
    assert sum(count.values()) == sum(p.numel() for p in ae.parameters()) and count["other"] == 0
    assert count["regulariser"] == 64 * 4 and count["encoder"] < count["decoder"]
    facts = seen(VQ(4, 64)).facts()
    assert facts["f"] == 4 and facts["latent_shape"] == [4, 8, 8] and facts["compression_elements"] == 12
    speed = facts["speed"]
    assert speed["encode"] > 0 and speed["decode"] > 0 and speed["batches"] == 3 and speed["warm_up"]
    assert not Pass(ae, read, 4, 8, CPU, None).facts()["speed"]["warm_up"]


def test_the_batch_size_is_of_no_consequence() -> None:
    a, b = seen(KL(), 3).latent(), seen(KL(), 12).latent()
    for name in a:
        assert np.abs(a[name].astype(float) - b[name].astype(float)).max() <= (1 if name == "pca_maps" else 2e-2), name


def test_identity_loses_nothing_and_has_no_bits() -> None:
    found = Pass(Autoencoder(IdentityNetwork(lambda c: c), NoRegulariser()), read, N, 8, CPU, None)
    scores = found.scores(20, 0)
    assert scores["psnr"]["value"] > 70 and "bits_per_pixel" not in scores
    assert found.facts()["compression_elements"] == 1 and found.facts()["parameters"]["encoder"] == 0
