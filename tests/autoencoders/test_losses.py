import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldmlab.autoencoders.autoencoder import Autoencoder, Reconstruction
from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.autoencoders.discriminator import GroupedBatchNorm, PatchGAN
from ldmlab.autoencoders.losses import FirstStageLoss
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.residual import ResidualNetwork
from ldmlab.errors import ConfigError


class Fixed(nn.Module):
    """A perceptual distance with a known value and gradient."""

    def forward(self, image, recon):
        return (image - recon).square().flatten(1).mean(1)


def images(n=4, size=16):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, size, size, dtype=torch.float64, generator=g) for _ in range(2)]


def reconstruction(image, regulariser=0.0):
    return Reconstruction(image, torch.tensor(regulariser, dtype=image.dtype), {}, image)


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_reconstruction_closed_forms_with_the_distance_on_every_element(pixel):
    x, y = images()
    error = (x - y).abs() if pixel == "l1" else (x - y).square()
    distance = (x - y).square().mean()
    elements = 3 * 16 * 16
    summed = FirstStageLoss("sum", pixel, Fixed(), perceptual_weight=0.7)
    mean = FirstStageLoss("mean", pixel, Fixed(), perceptual_weight=0.7)
    torch.testing.assert_close(summed.reconstruction(x, y).loss, error.sum() / 4 + 0.7 * elements * distance)
    torch.testing.assert_close(mean.reconstruction(x, y).loss, error.mean() + 0.7 * distance)
    logs = summed.reconstruction(x, y).logs
    torch.testing.assert_close(logs["rec"], error.mean())
    torch.testing.assert_close(logs["perceptual"], distance)


def test_total_before_disc_start_is_reconstruction_plus_regulariser():
    x, y = images()
    loss = FirstStageLoss("mean", discriminator=PatchGAN(layers=1, width=4), disc_start=100)
    total, logs = loss.autoencoder_loss(x, reconstruction(y, 0.3), None, images_seen=99)
    torch.testing.assert_close(total, (x - y).abs().mean() + 0.3)
    assert "generator" not in logs and not loss.adversarial(99) and loss.adversarial(100)


def test_hinge_is_half_the_sum():
    x, y = images()
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0, -3.0, -0.5, 0.5, 2.0], dtype=torch.float64).view(8, 1, 1, 1)
    loss, logs = FirstStageLoss("sum").discriminator_loss(x, y, lambda both, groups: logits)
    # real: mean(0, 0.5, 2, 1); reconstructed: mean(0, 0.5, 1.5, 3)
    assert loss.item() == pytest.approx(0.5 * (3.5 / 4 + 5 / 4))
    assert (logs["logits_real"].item(), logs["logits_fake"].item()) == pytest.approx((0.375, -0.25))


@pytest.mark.parametrize(("n", "reduction"), [(3, "sum"), (6, "mean"), (5, "sum")])
def test_adaptive_weight_is_the_official_formula_on_each_group(n, reduction):
    """Groups of 3: each one's weight, and the whole loss's gradient, as if the official loss had run on that group alone."""
    torch.manual_seed(0)
    model = Autoencoder(ConvNetwork(2, [1, 2], KL().channels_in, width=8, blocks=1), KL(1e-3)).double()
    disc = PatchGAN(layers=2, width=4).double().requires_grad_(False)
    x, noise = images(n)[0], torch.randn(n, 2, 8, 8, dtype=torch.float64)
    loss = FirstStageLoss(reduction, "l1", Fixed(), discriminator=disc, disc_weight=0.6, norm_images=3)
    total, logs = loss.autoencoder_loss(x, model(x, noise), model.last_layer, 0, disc)
    got = torch.autograd.grad(total, list(model.parameters()))

    want_total, weights = torch.zeros((), dtype=torch.float64), []
    for part, z in zip(x.split(3), noise.split(3), strict=True):
        recon = model(part, z)
        rec = (part - recon.image_BCHW).abs() + Fixed()(part, recon.image_BCHW).view(-1, 1, 1, 1)
        nll = rec.sum() / len(part) if reduction == "sum" else rec.mean()
        generator = -disc(recon.image_BCHW, [len(part)]).mean()
        grads = [torch.autograd.grad(t, model.last_layer, retain_graph=True)[0].norm() for t in (nll, generator)]
        weights.append(torch.clamp(grads[0] / (grads[1] + 1e-4), 0.0, 1e4).detach())
        want_total = want_total + len(part) / n * (nll + recon.loss + 0.6 * weights[-1] * generator)
    torch.testing.assert_close(total, want_total)
    torch.testing.assert_close(logs["adaptive_weight"], torch.stack(weights).mean())
    for g, w in zip(got, torch.autograd.grad(want_total, list(model.parameters())), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-7, atol=1e-9)


def test_adaptive_weight_is_clamped_and_can_be_off():
    torch.manual_seed(0)
    model = Autoencoder(ConvNetwork(2, [1, 2], KL().channels_in, width=8, blocks=1), KL())
    disc = PatchGAN(layers=1, width=4)
    nn.init.zeros_(disc.main[-1].weight)  # a generator gradient of 0: λ = ‖∇nll‖ / 1e-4, above the limit
    x = torch.randn(2, 3, 16, 16)
    for adaptive, want in ((True, 1e4), (False, 1.0)):
        loss = FirstStageLoss("sum", discriminator=disc, adaptive=adaptive)
        assert loss.autoencoder_loss(x, model(x), model.last_layer, 0, disc).logs["adaptive_weight"] == want


def test_grouped_norm_equals_batch_norm_when_the_group_is_the_batch():
    torch.manual_seed(0)
    ours, theirs = GroupedBatchNorm(5), nn.BatchNorm2d(5).train()
    nn.init.normal_(ours.weight)
    theirs.weight.data.copy_(ours.weight)
    x = torch.randn(6, 5, 4, 4) * 3 + 1
    torch.testing.assert_close(ours(x, [6]), theirs(x))
    torch.testing.assert_close(ours(x, [4, 2]), torch.cat([theirs(x[:4]), theirs(x[4:])]))


def test_discriminator_does_not_depend_on_the_micro_batch():
    torch.manual_seed(0)
    loss = FirstStageLoss("sum", discriminator=PatchGAN(layers=2, width=8), norm_images=2)
    disc = loss.discriminator
    real, fake = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    assert loss.groups(4) == [2, 2] and loss.groups(5) == [2, 2, 1]
    whole = loss.discriminator_loss(real, fake, disc).loss
    halves = [loss.discriminator_loss(r, f, disc).loss for r, f in zip(real.split(2), fake.split(2), strict=True)]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_patchgan_is_the_official_network():
    disc = PatchGAN()
    convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)  # 4x4; biases in the first and last only
    assert sum(p.numel() for p in disc.parameters()) == convolutions + 64 + 1 + 2 * (128 + 256 + 512)
    assert disc(torch.randn(1, 3, 64, 64), [1]).shape == (1, 1, 6, 6)
    assert sorted(n for n, _ in disc.named_parameters()) == sorted(
        f"main.{n}" for n in ("0.weight", "0.bias", "2.weight", "3.weight", "3.bias", "5.weight", "6.weight", "6.bias",
                              "8.weight", "9.weight", "9.bias", "11.weight", "11.bias")
    )  # fmt: skip
    assert disc.main[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    for layers in (1, 2, 3):
        small = PatchGAN(layers, width=4)
        assert small(torch.randn(2, 3, small.min_resolution, small.min_resolution), [2]).numel() == 2
        with pytest.raises(ConfigError, match=r"data\.resolution="):
            small(torch.randn(2, 3, small.min_resolution - 1, small.min_resolution - 1), [2])


@pytest.mark.parametrize("option", ["perceptual_weight", "disc_weight", "disc_start", "norm_images"])
def test_negative_options_name_themselves(option):
    with pytest.raises(ConfigError, match=rf"ae\.loss\.{option}=-1"):
        FirstStageLoss("sum", **{option: -1})


def test_mean_and_functional_agree_with_torch():
    x, y = images()
    torch.testing.assert_close(FirstStageLoss("mean").reconstruction(x, y).loss, F.l1_loss(y, x))


def test_adaptive_weight_sees_through_pixel_shuffle():
    """A last convolution that emits 2×2 pixels a position: λ is still the ratio of gradients at its weight."""
    torch.manual_seed(0)
    model = Autoencoder(ResidualNetwork(2, [1, 2], KL().channels_in, width=8, depths=[1, 1]), KL(1e-3)).double()
    nn.init.normal_(model.network.decoder.conv_out.weight, std=0.1)
    disc = PatchGAN(layers=2, width=4).double().requires_grad_(False)
    x, noise = images(4)[0], torch.randn(4, 2, 4, 4, dtype=torch.float64)
    loss = FirstStageLoss("sum", "l1", discriminator=disc, norm_images=4)
    logs = loss.autoencoder_loss(x, model(x, noise), model.last_layer, 0, disc).logs
    recon = model(x, noise).image_BCHW
    terms = ((x - recon).abs().sum() / 4, -disc(recon, [4]).mean())
    norms = [torch.autograd.grad(t, model.last_layer, retain_graph=True)[0].norm() for t in terms]
    torch.testing.assert_close(logs["adaptive_weight"], norms[0] / (norms[1] + 1e-4))
