"""The network beside a linear path: where it starts, what it can be composed with, what trains."""

import pytest
import torch
from test_pca import pictures

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.discriminator import PatchGAN
from ldmlab.autoencoders.losses import FirstStageLoss
from ldmlab.autoencoders.pca import PCANetwork
from ldmlab.autoencoders.regularisers.fsq import FSQ
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.regularisers.none import NoRegulariser
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.autoencoders.regularisers.vq_ema import EMAVQ
from ldmlab.autoencoders.residual import Down, ResidualNetwork, Up, averaged
from ldmlab.errors import ConfigError
from ldmlab.randomness import Draws
from ldmlab.training.autoencoder_loss import AutoencoderLoss

REGULARISERS = {
    "none": lambda: NoRegulariser(),
    "kl": lambda: KL(initial_logvar=-8.0),
    "vq": lambda: VQ(3, 32, start="kmeans"),
    "vq_ema": lambda: EMAVQ(3, 32, start="kmeans"),
    "fsq": lambda: FSQ(3, [8, 6, 5]),
}


def made(regulariser, multipliers=(1, 2), images=None, **options):
    torch.manual_seed(0)
    options = {"c": 3, "width": 8, "depths": [1] * len(multipliers), **options}
    ae = Autoencoder(
        ResidualNetwork(multipliers=list(multipliers), channels_in=regulariser.channels_in, **options), regulariser
    )
    images = pictures() if images is None else images
    ae.fit_linear(lambda: images.split(16))
    return ae


@pytest.mark.parametrize(("window", "reads_linear"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("kind", REGULARISERS)
def test_starts_exactly_as_the_linear_first_stage(kind, window, reads_linear):
    image = pictures()
    ae = made(REGULARISERS[kind](), window=window, reads_linear=reads_linear)
    regulariser = REGULARISERS[kind]()
    linear = Autoencoder(PCANetwork(4, 3, regulariser.channels_in, window=window), regulariser)
    linear.fit_linear(lambda: image.split(16))
    torch.testing.assert_close(ae(image).image_BCHW, linear(image).image_BCHW, atol=1e-5, rtol=0)
    torch.testing.assert_close(ae.moments(image), linear.moments(image), atol=1e-5, rtol=0)
    assert torch.equal(ae.network.encode_at_start(image), ae.moments(image))


@pytest.mark.parametrize(("stem", "levels"), [(2, 1), (2, 2), (4, 2), (2, 4), (4, 4), (1, 2)])
@pytest.mark.parametrize("path", ["pca", "average", "none"])
def test_shapes_at_every_f(path, stem, levels):
    f = stem * 2 ** (levels - 1)
    images = pictures(n=2, size=64)
    network = ResidualNetwork(3, [1] * levels, KL().channels_in, stem, width=8, depths=[1] * levels, path=path)
    ae = Autoencoder(network, KL())
    assert ae.f == f and ae.latent_shape(64) == (3, 64 // f, 64 // f)
    assert ae.moments(images[:2]).shape == (2, 6, 64 // f, 64 // f)
    assert ae(images[:2]).image_BCHW.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("path", ["pca", "pca, read", "average", "none"])
@pytest.mark.parametrize("kind", REGULARISERS)
def test_a_step_of_both_players_moves_every_parameter(kind, path):
    """With the paper's adversarial term, whose adaptive weight looks at the last convolution."""
    ae = made(REGULARISERS[kind](), path=path.split(",")[0], reads_linear="read" in path)
    disc = PatchGAN(layers=1, width=4)
    loss = FirstStageLoss("mean", "l1", discriminator=disc, norm_images=4)
    stage = AutoencoderLoss(ae, loss, Draws(0))
    batch = {"image": pictures(8), "position": torch.arange(8)}
    for step in range(
        3
    ):  # the last convolutions start at zero, so what is before them has no gradient in the first step
        optimizer = torch.optim.SGD(ae.parameters(), lr=1e-2)
        before = [p.detach().clone() for p in ae.parameters() if p.requires_grad]
        total, logs = stage.loss(batch, "autoencoder", 0)
        assert torch.isfinite(total) and torch.isfinite(logs["adaptive_weight"])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        stage.loss(batch, "discriminator", 0)[0].backward()
        if step == 2:
            grads = [p.grad for name, p in ae.named_parameters() if p.requires_grad and "embedding" not in name]
            assert all(g is not None and g.abs().sum() > 0 for g in grads)
            assert any(not torch.equal(a, b) for a, b in zip(before, ae.parameters(), strict=False))


def test_the_linear_path_stays_in_full_precision_under_autocast():
    ae, image = made(KL()), pictures()
    with torch.autocast("cpu", torch.bfloat16):
        half = ae(image).image_BCHW
    torch.testing.assert_close(half, ae(image).image_BCHW, atol=1e-5, rtol=0)  # E and D are zero still


def test_training_beats_the_linear_start():
    image = pictures(32)
    ae = made(NoRegulariser(), images=image)
    optimizer = torch.optim.AdamW(ae.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        error = (ae(image).image_BCHW - image).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("depths", [[0, 1], [1, 0], [2, 1]])
def test_a_decoder_that_reads_the_linear_image_answers_to_it(depths):
    """With the latent hidden from D, D still changes with the linear image."""
    images = pictures(8, size=32)
    ae = made(NoRegulariser(), images=images, depths=depths, reads_linear=True, width=4)
    decoder = ae.network.decoder
    torch.nn.init.normal_(decoder.conv_out.weight)
    torch.nn.init.zeros_(decoder.conv_in.weight)
    linear = torch.randn(1, 12, 16, 16)
    other = linear.clone()
    other[:, :, 0, 0] += 1
    z = torch.zeros(1, 3, 8, 8)
    assert not torch.equal(decoder(z, linear), decoder(z, other))
    with pytest.raises(TypeError):  # never without it, unseen
        decoder(z)


def test_only_the_decoder_is_the_decoders():
    ae = made(KL(), reads_linear=True)
    ae.freeze_latents()
    trained = {name.split(".")[1] for name, p in ae.named_parameters() if p.requires_grad}
    assert trained == {"decoder"}


def test_linear_path_is_saved_and_not_trained():
    ae, fresh = made(KL()), made(KL(), images=pictures(seed=5))
    assert not any(name.startswith("network.linear") for name, _ in ae.named_parameters())
    fresh.load_state_dict(ae.state_dict())
    assert torch.equal(ae(pictures()).image_BCHW, fresh(pictures()).image_BCHW)


def test_average_shortcut_is_dc_aes():
    """2410.10733, Fig. 4: groups of neighbouring channels averaged going down, channels repeated going up."""
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(averaged(x, 4), x.view(2, 4, 2, 3, 3).mean(2))
    torch.testing.assert_close(averaged(x, 16), x.repeat_interleave(2, dim=1))
    down, up = Down(2, 4, True), Up(4, 2, True)
    for module in (down, up):
        torch.nn.init.zeros_(module.conv.weight)
        torch.nn.init.zeros_(module.conv.bias)
    image = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(up(down(image)).mean(), image.mean())


def test_what_it_refuses():
    for options, words in (
        ({"stem": 3}, r"ae\.network\.stem=3"),
        ({"multipliers": []}, r"ae\.network\.multipliers=\[\]"),
        ({"depths": [1]}, r"ae\.network\.depths=\[1\] must list"),
        ({"decoder_depths": [1, 2, 3]}, r"ae\.network\.decoder_depths=\[1, 2, 3\] must list"),
        ({"width": 0}, r"ae\.network\.width=0"),
        (
            {"path": "none", "reads_linear": True},
            r"ae\.network\.reads_linear=true needs the linear image of path=pca, not none",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            ResidualNetwork(**{"c": 3, "multipliers": [1, 2], "channels_in": lambda c: c, **options})
