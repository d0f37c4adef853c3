"""A map beside the latent: what it is, that it is mirrored with its image, and that a denoiser learns from it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmlab import build
from ldmlab.conditioning.concat_map import ConcatMap
from ldmlab.conditioning.source import HeldOut, chosen
from ldmlab.config.compose import load
from ldmlab.data.batches import Batches
from ldmlab.data.shapes import Shapes
from ldmlab.diffusion.denoiser import denoise_with
from ldmlab.errors import ConfigError
from ldmlab.randomness import Draws, ImageNoise
from ldmlab.training.diffusion_loss import DiffusionLoss

VOCABULARY: dict[str, int | None] = {"segmentation": 11, "depth": None, "low_res": None}
OPTIONS = ["data=shapes", "data.fields=[label,segmentation]", "data.flip=true", "data.resolution=32", "debug=tiny", "ae=kl_f4_small",
           "ldm=unet_tiny", "cond=segmentation_map"]  # fmt: skip


def concat(part: ConcatMap, **batch: Tensor) -> Tensor:
    found = part(batch).concat_BCHW
    assert found is not None
    return found


def test_a_class_map_becomes_the_share_of_each_class_in_each_cell() -> None:
    map_BHW = torch.zeros(1, 8, 8, dtype=torch.uint8)
    map_BHW[0, :, 4:] = 3
    map_BHW[0, 0, 0] = 10
    found = concat(ConcatMap("segmentation", (4, 2, 2), VOCABULARY), segmentation=map_BHW)
    assert found.shape == (1, 11, 2, 2) and found.dtype == torch.float32
    assert found[0, 3].tolist() == [[0, 1], [0, 1]] and found[0, 0, 0, 0] == 15 / 16 and found[0, 10, 0, 0] == 1 / 16
    nearest = concat(ConcatMap("segmentation", (4, 2, 2), VOCABULARY, resize="nearest"), segmentation=map_BHW)
    assert nearest[0, :, 0, 0].argmax() == 10 and torch.equal(nearest.sum(1), torch.ones(1, 2, 2))


def test_maps_and_pictures_come_as_they_are() -> None:
    depth, low = torch.rand(2, 8, 8), torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    found = concat(ConcatMap("depth", (4, 4, 4), VOCABULARY), depth=depth)
    torch.testing.assert_close(found, depth.view(2, 1, 4, 2, 4, 2).mean(dim=(3, 5)))
    found = concat(ConcatMap("low_res", (4, 8, 8), VOCABULARY, channels=3), low_res=low)
    torch.testing.assert_close(found, low.permute(0, 3, 1, 2).float() / 127.5 - 1)
    null = ConcatMap("low_res", (4, 8, 8), VOCABULARY, channels=3).null(5, (6, 7), "cpu").concat_BCHW
    assert null is not None and null.shape == (5, 3, 6, 7) and not null.any()


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"channels=3, but the field 'segmentation' has 11 classes"):
        ConcatMap("segmentation", (4, 2, 2), VOCABULARY, channels=3)
    with pytest.raises(ConfigError, match=r"channels must be at least 1, or null; got 0"):
        ConcatMap("depth", (4, 2, 2), VOCABULARY, channels=0)
    with pytest.raises(ConfigError, match=r"channels=1, but the field 'low_res' has 3"):
        concat(ConcatMap("low_res", (4, 8, 8), VOCABULARY), low_res=torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_training_sees_the_map_of_the_mirrored_image() -> None:
    """Segmentation decides depth's edges and colours' edges; the map that training concatenates is that of its image."""
    data = Shapes(32, train_images=40, fields=["segmentation"], cached=False, flip=True)
    batches = Batches(data, 16, 16, 3, torch.device("cpu"))
    batch = batches.step(0)[0]
    plain = torch.stack([torch.from_numpy(data[batches.order[n]]["segmentation"]) for n in range(16)])
    mirror = batches.draws.rand("flip", torch.arange(16), (), "cpu") < 0.5
    part = ConcatMap("segmentation", (4, 8, 8), VOCABULARY)
    seen, known = concat(part, **batch), concat(part, segmentation=plain)
    assert 0 < int(mirror.sum()) < 16
    assert torch.equal(seen, torch.where(mirror[:, None, None, None], known.flip(3), known))


def made() -> tuple[Any, Any, Any, Any]:
    cfg, _ = load(OPTIONS)
    data = build.dataset(cfg, "train", None)
    ae = build.autoencoder(cfg)
    return cfg, data, ae, build.denoiser(cfg, ae, data)


def test_a_denoiser_learns_on_mirrored_maps() -> None:
    """The loss falls, and the map's channels of the first convolution learn with the latent's."""
    cfg, data, ae, model = made()
    assert data.flip and model.conditioner.concat_channels == 11
    stage = DiffusionLoss(model, ae, build.objective(cfg), Draws(0), drop=0.1, batch_size=8)
    first = next(p for p in model.network.parameters() if p.dim() == 4 and p.shape[1] == ae.c + 11)
    before = first.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches, losses = Batches(data, 8, 8, 0, torch.device("cpu")), []
    for images in range(0, 40 * 8, 8):
        loss, _ = stage.loss(batches.step(images)[0], "denoiser", images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    moved_C = (first.detach() - before).abs().amax(dim=(0, 2, 3))
    assert (moved_C[: ae.c] > 0).all() and (moved_C[ae.c :] > 0).sum() >= 9  # of 11 classes, those that were seen


def test_held_out_maps_are_sampled_from() -> None:
    """Image i is image i at any batch size, conditions included; another map is another image."""
    cfg, _, ae, model = made()
    for parameter in model.network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)  # zero at the start: nothing would depend on anything
    model.eval().requires_grad_(False)
    val = build.dataset(cfg, "val", None)
    source = chosen("uniform", model.conditioner.needs, val, val, n=4, seed=0)
    assert isinstance(source, HeldOut) and source.fields == ("segmentation",)
    objective, sampler = build.objective(cfg), build.sampler(cfg)
    denoise, shape = denoise_with(model, objective), ae.latent_shape(val.resolution)

    def samples(indices: list[int], conditions: list[int]) -> Tensor:
        noise = ImageNoise(indices, shape)
        cond = model.condition(source.batch(conditions))
        return sampler(denoise, noise(), objective.schedule, cond, noise)

    every = samples([0, 1, 2, 3], [0, 1, 2, 3])
    assert every.shape == (4, *shape) and torch.isfinite(every).all()
    torch.testing.assert_close(torch.cat([samples([i], [i]) for i in range(4)]), every, rtol=0, atol=2e-3)
    assert not torch.allclose(samples([0], [1]), every[:1], rtol=0, atol=0.02)
