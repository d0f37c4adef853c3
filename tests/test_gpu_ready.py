"""Every stage on a GPU that is not there: no step waits for it, nothing is left on the CPU, nothing is in double precision."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import squeezenet1_1

from ldmlab import build
from ldmlab.config.compose import group_options, load
from ldmlab.data.batches import Batches, to_uint8
from ldmlab.data.parcel import on_device
from ldmlab.diffusion.windows import Windows
from ldmlab.guidance.autoguidance import Autoguidance
from ldmlab.guidance.base import Model
from ldmlab.guidance.classifier import ClassifierGuidance
from ldmlab.guidance.image import ImageGuidance, resembles
from ldmlab.guidance.observations import Downsample
from ldmlab.guidance.stack import Guided
from ldmlab.metrics.features import SqueezeNet
from ldmlab.metrics.segmenter import Segmenter
from ldmlab.pipeline.check_device import ONCE, WAITS, pretended_accelerator, watched
from ldmlab.pipeline.context import frozen
from ldmlab.pipeline.pretend import CUDA, PretendedCuda
from ldmlab.randomness import Draws, ImageNoise
from ldmlab.training.diffusion_loss import DiffusionLoss
from ldmlab.training.loop import TrainingLoss, train_step
from ldmlab.training.noisy_classifier_loss import NoisyClassifierLoss
from ldmlab.training.segmenter_loss import SegmenterLoss

SMALL = [
    "debug=tiny", "data.resolution=32", "data.train_images=32", "data.val_images=12", "runtime.channels_last=true",
    "ae.network.width=32", "ldm.fit.precision=bf16", "ldm.fit.images=16", "runtime.threads=1",
]  # fmt: skip


ONE_LEVEL = ["ldm.network.multipliers=[1]", "ldm.network.attention_factors=[1]"]
GUIDED = ["sampler.guidance=2", "sampler.guidance_interval=[0.1,10]", "sampler.guidance_rescale=0.5"]


@pytest.fixture(scope="module")
def pretended() -> PretendedCuda:
    """One for all tests, which may share its tensors."""
    return PretendedCuda()


@pytest.fixture
def device(pretended: PretendedCuda) -> Iterator[PretendedCuda]:
    with pretended:
        pretended.clear()
        yield pretended


@pytest.fixture(scope="module")
def labelled(pretended: PretendedCuda) -> tuple[Any, Any, Model]:
    """Data with labels, a first stage, and a denoiser that is told the label."""
    cfg = load([*SMALL, *ONE_LEVEL, "ae=kl_f4", "cond=class_label"]).cfg
    with pretended:
        data = build.dataset(cfg, "train", None)
        ae: Any = frozen(build.autoencoder(cfg), CUDA)
        return data, ae, Model(frozen(build.denoiser(cfg, ae, data), CUDA), build.objective(cfg))  # type: ignore[arg-type]


def wrong(device: PretendedCuda) -> list[str]:
    kinds = (*WAITS, "float64")
    return [str(event) for event in device.events if event.kind in kinds and not event.place.startswith(ONCE)]


def second_step(device: PretendedCuda, cfg: Any, data: Any, loss: TrainingLoss) -> tuple[dict[str, int], set[str]]:
    """Counts of what a loss's second training step does, and the names in its log; no wait among them, nothing in double precision."""
    with pretended_accelerator() as accelerator:
        for module in loss.modules.values():
            module.to(CUDA).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizers = {player: build.optimizer(module, cfg.ldm.fit) for player, module in loss.modules.items()}
        batches = Batches(data, 16, 16, 0, CUDA)
        for images in (0, 16):
            device.clear()
            logs = train_step(loss, batches.step(images), images, cfg.ldm.fit, optimizers, accelerator)
        assert all(value.device == CUDA for value in logs.values())
        assert not wrong(device)
        return device.counts(), set(logs)


def denoiser_step(device: PretendedCuda, words: list[str]) -> dict[str, int]:
    """Of a denoiser on images that are encoded on the way."""
    cfg = load([*SMALL, "ae=kl_f4", *words]).cfg
    data = build.dataset(cfg, "train", None)
    ae: Any = frozen(build.autoencoder(cfg), CUDA)
    model = build.denoiser(cfg, ae, data)
    loss = DiffusionLoss(model, ae, build.objective(cfg), Draws(0), build.drop(cfg), 16)
    counts, logs = second_step(device, cfg, data, loss)
    assert "loss_t3" in logs
    return counts


@pytest.mark.parametrize(
    ("words", "copies"),
    [
        (["cond=class_label", "cond.drop=0.1", "ldm.network.dropout=0.1", "data.flip=true"], 1),
        (["cond=class_vector", "ldm=dit_tiny", "objective=flow_sd3", "ldm.fit.optimizer=muon"], 1),
        (["cond=layout_small", "data.fields=[boxes]", "objective=edm", *ONE_LEVEL], 1),
        (
            ["cond=inpaint", "objective=v_minsnr", "objective.stratified=true", *ONE_LEVEL],
            2,
        ),  # the batch and the masks drawn for it
        (["cond=segmentation_map", "data.fields=[segmentation]", "objective=eps_p2", *ONE_LEVEL], 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_training_step_of_the_denoiser_waits_for_nothing(
    device: PretendedCuda, words: list[str], copies: int
) -> None:
    assert denoiser_step(device, words) == {"copy": copies}


def test_a_training_step_of_the_judges_waits_for_nothing(device: PretendedCuda, labelled: Any) -> None:
    """The segmenter, and the classifier of noisy latents that guidance follows; the extractor is part of the whole run below."""
    cfg = load([*SMALL, "ae=kl_f4", "data.fields=[label,segmentation,depth]", "guidance=classifier"]).cfg
    _, ae, model = labelled
    data = build.dataset(cfg, "train", None)
    noisy = build.noisy_classifier(cfg, ae, data)
    for loss in (
        SegmenterLoss(Segmenter(7, 8), "segmentation", "depth"),
        NoisyClassifierLoss(noisy, ae, model.objective, Draws(0), 16),
    ):
        assert second_step(device, cfg, data, loss)[0] == {"copy": 1}


def test_features_and_maps_of_a_batch_are_found_without_waiting(pretended: PretendedCuda, tmp_path: Path) -> None:
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "weights.pth")
    for net in (SqueezeNet(str(tmp_path / "weights.pth"), 64), Segmenter(7, 8)):
        with pretended, torch.no_grad():
            frozen(net, CUDA)
            pretended.clear()
            found = net(on_device(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), CUDA))
            assert all(part.device == CUDA for part in found) and pretended.counts() == {"copy": 1}


@pytest.mark.parametrize("name", group_options("sampler"))
def test_no_step_of_a_sampler_waits(device: PretendedCuda, labelled: Any, name: str) -> None:
    """With classifier-free guidance within an interval, rescaled, in bf16."""
    cfg = load([*SMALL, f"sampler={name}", "sampler.steps=5", *GUIDED]).cfg
    _, ae, model = labelled
    sampler = build.sampler(cfg)
    guided = Guided(model, build.guidance(cfg, sampler))
    label_B = torch.arange(3).pin_memory().to(CUDA, non_blocking=True)
    bound = guided.bind({"label": label_B}, 3, (8, 8), CUDA)
    noise = ImageNoise([1, 2, 3], (3, 8, 8), CUDA)
    noise_BCHW = noise()
    device.clear()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        z_BCHW = sampler(bound.denoise, noise_BCHW, model.objective.schedule, bound.cond, noise)
        image_BHWC = to_uint8(ae.decode(z_BCHW))
    assert z_BCHW.device == image_BHWC.device == CUDA and image_BHWC.shape == (3, 32, 32, 3)
    assert not wrong(device) and not device.counts().get("copy")


def test_no_kind_of_guidance_waits_nor_do_tiles_and_windows(
    device: PretendedCuda, labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load([*SMALL, "guidance=classifier", "sampler.guidance=2", "sampler.steps=2"]).cfg
    data, ae, model = labelled
    noisy: Any = frozen(build.noisy_classifier(cfg, ae, data), CUDA)
    picture_1CHW = torch.zeros(1, 3, 32, 32, device=CUDA)
    sampler = build.sampler(cfg)
    free = build.guidance(load([*SMALL, "sampler.guidance=2"]).cfg, sampler)
    kinds = (
        Autoguidance(2.0, weak=model),
        *free,
        ClassifierGuidance(1.0, [0.1, 10.0], classifier=noisy),
        ImageGuidance("", 1.0, transform=Downsample(2), log_p=resembles(Downsample(2)(picture_1CHW), ae.decode_with_slope, Downsample(2))),
    )  # fmt: skip
    label_B = torch.arange(2).pin_memory().to(CUDA, non_blocking=True)
    bound = Guided(model, kinds).bind({"label": label_B}, 2, (8, 8), CUDA)
    through = Guided(Model(model.denoiser, model.objective, Windows(6, 4)), free).bind(
        {"label": label_B}, 2, (8, 8), CUDA
    )
    noise = ImageNoise([1, 2], (3, 8, 8), CUDA)
    noise_BCHW = noise()
    device.clear()
    z_BCHW = sampler(bound.denoise, noise_BCHW, model.objective.schedule, bound.cond, noise)
    monkeypatch.setattr(ae, "tile", 16)
    with torch.no_grad():
        image_BCHW = ae.decode(z_BCHW)
        assert ae.encode(image_BCHW).device == image_BCHW.device == CUDA
        assert sampler(through.denoise, z_BCHW, model.objective.schedule, through.cond, noise).device == CUDA
    assert not wrong(device) and not device.counts().get("copy")


@pytest.mark.slow
def test_a_whole_run_waits_between_steps_alone() -> None:
    """Extractor, codebook with a discriminator, latents, denoiser, samples and scores, as `check=device` runs them."""
    words = [
        "ae=vq_f4", "ae/regulariser=vq_ema", "ae.fit.precision=bf16", "ae.fit.images=8", "ae.loss.disc_start=0",
        "ae.latent_scale.images=8", *ONE_LEVEL, "sampler.guidance=2",
        "eval.extractor_fit.images=32", "eval.samples=12", "eval.reconstructions=8", "eval.reference.images=16", "until=scores",
    ]  # fmt: skip
    seen = watched(load([*SMALL, *words]))
    assert list(seen.steps) == ["train classifier", "train autoencoder + discriminator", "train denoiser", "sample"]
    for name, steps in seen.steps.items():
        assert not steps.wrong, steps.wrong
        assert steps.copies() == (0 if name == "sample" else 1)
    fits = ("autoencoders/linear_path.py",)  # closed forms are fitted in double precision wherever they are
    assert not [
        key for key in seen.outside() if key[0] == "shape" or (key[0] == "float64" and not key[1].startswith(fits))
    ]
    ahead = (
        "pipeline/",
        "autoencoders/autoencoder.py set_scale",
        "randomness.py __init__",
        *ONCE,
    )  # weights, and keys of the noise
    assert not [key for key in seen.outside() if key[0] == "pageable" and not key[1].startswith(ahead)]
