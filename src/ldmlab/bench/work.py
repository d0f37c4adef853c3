"""Pieces of a run as functions without arguments, ready to be timed: made by the same code that training and sampling use.

Shape letters: B batch, C channels, H W space.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.config.compose import with_values
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_float
from ldmlab.diffusion.denoiser import Denoiser, denoise_with
from ldmlab.guidance.classifier_free import classifier_free
from ldmlab.pipeline.live_memory import tensors_of
from ldmlab.randomness import Draws
from ldmlab.training.autoencoder_loss import AutoencoderLoss
from ldmlab.training.diffusion_loss import DiffusionLoss
from ldmlab.training.ema import EMA
from ldmlab.training.loop import train_step

SAMPLER_STEPS = 2  # of one timed call
LPIPS = "ldmlab.autoencoders.perceptual.LPIPS"


class Work(NamedTuple):
    """A piece of work on `images` images; `held` is what lives in memory before and after it."""

    run: Callable[[], object]
    images: int
    held: Callable[[], list[Tensor]]


class AnyNoise(Draws):
    """Noise from the global generator: costs what any noise costs, and also exists for tensors without contents."""

    def randn(self, purpose: str, position_B: Tensor, shape: Sequence[int], device: torch.device | str) -> Tensor:
        return torch.randn(len(position_B), *shape, device=device)


@contextlib.contextmanager
def any_weights(cfg: DictConfig) -> Iterator[tuple[DictConfig, str]]:
    """Within, LPIPS without given weights finds random ones of VGG16's shapes: speed and memory do not depend on them.

    Yields the configuration to build from, and a note for the table, empty when nothing was put in place.
    """
    perceptual = cfg.ae.loss.perceptual if cfg.ae.loss is not None else None
    if perceptual is None or perceptual["_target_"] != LPIPS or perceptual.weights is not None:
        yield cfg, ""
        return
    from torchvision.models.vgg import cfgs, make_layers

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vgg16.pth"
        features = make_layers(cfgs["D"], batch_norm=False)  # VGG16 without its classifier, the bulk of it
        state = {f"features.{k}": v for k, v in features.state_dict().items()}
        torch.save(state, file)
        weighted = with_values(cfg, {"ae.loss.perceptual.weights": str(file)})
        yield weighted, "LPIPS with random weights: neither speed nor memory depends on them"


def real_batch(data: Any, size: int, device: torch.device) -> dict[str, Any]:
    """The first images of a data set with their fields (again from the start where it has fewer), as training gets them."""
    batch = to_batch(data.__getitems__([i % len(data) for i in range(size)]))
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return {**batch, "image": to_float(batch["image"]), "position": torch.arange(size)}


def encode(ae: Autoencoder, image_BCHW: Tensor) -> Work:
    """Image → latent, without gradients."""

    @torch.no_grad()
    def run() -> None:
        ae.encode(image_BCHW)

    return Work(run, len(image_BCHW), lambda: list(tensors_of(ae, image_BCHW)))


def decode(ae: Autoencoder, z_BCHW: Tensor) -> Work:
    """Latent → image, without gradients."""

    @torch.no_grad()
    def run() -> None:
        ae.decode(z_BCHW)

    return Work(run, len(z_BCHW), lambda: list(tensors_of(ae, z_BCHW)))


def first_stage_step(
    cfg: DictConfig, ae: Autoencoder, loss: Any, batch: dict[str, Any], accelerator: Any, draws: Draws
) -> Work:
    """One step of every player of the first stage, adversarial terms on (as after ae.loss.disc_start), and the average."""
    stage = AutoencoderLoss(ae, loss, draws)
    return _training(cfg.ae.fit, stage, batch, accelerator, loss)


def denoiser_step(
    cfg: DictConfig, denoiser: Denoiser, ae: Autoencoder, batch: dict[str, Any], accelerator: Any
) -> Work:
    """One step of the denoiser and its average; `batch` has cached moments, or images that are encoded on the way."""
    stage = DiffusionLoss(denoiser, ae, build.objective(cfg), AnyNoise(0), build.drop(cfg))
    # t and the dropped conditions are drawn by position, so the batch keeps real positions
    return _training(cfg.ldm.fit, stage, batch, accelerator, ae)


def _training(fit: DictConfig, stage: Any, batch: dict[str, Any], accelerator: Any, *others: nn.Module) -> Work:
    modules = dict(stage.modules)
    optimizers = {player: build.optimizer(module, fit) for player, module in modules.items()}
    average = EMA(modules[stage.players[0]], fit.ema) if fit.ema is not None else None
    images_seen = 2**62  # every term that starts late has started

    def run() -> None:
        train_step(stage, [batch], images_seen, fit, optimizers, accelerator)
        if average is not None:
            average.update(1000)

    def held() -> list[Tensor]:
        inputs = [v for v in batch.values() if isinstance(v, Tensor)]
        shadow = average.shadow if average is not None else []
        return list(tensors_of(*modules.values(), *others, *optimizers.values(), *inputs, *shadow))

    return Work(run, len(batch["position"]), held)


def sampler_step(cfg: DictConfig, denoiser: Denoiser, batch: dict[str, Any], shape: tuple[int, int, int]) -> Work:
    """Evaluations of the composition's sampler with its guidance, in `SAMPLER_STEPS` steps, the decoder not included."""
    sampler, objective = dataclasses.replace(build.sampler(cfg), steps=SAMPLER_STEPS), build.objective(cfg)  # type: ignore[call-arg]
    images, device = len(batch["position"]), next(denoiser.parameters()).device
    zT_BCHW = torch.randn(images, *shape, device=device)

    @torch.no_grad()
    def run() -> None:
        null = denoiser.null(images, shape[1:], device)
        denoise = classifier_free(denoise_with(denoiser, objective), sampler, null, objective.schedule)
        noise = lambda: torch.randn_like(zT_BCHW)  # noqa: E731
        sampler(denoise, zT_BCHW, objective.schedule, denoiser.condition(batch), noise)

    return Work(run, images * sampler.evaluations, lambda: list(tensors_of(denoiser, zT_BCHW)))
