"""Image guidance: the decoded prediction is pushed towards a picture (the paper, App. C).

Shape letters: B batch, C channels, H W space.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Schedule
from ldmlab.errors import ConfigError
from ldmlab.guidance.base import Binding, Guidance, Results, SampleCost, with_interval
from ldmlab.guidance.gradient import LogP, pushed
from ldmlab.guidance.interval import within
from ldmlab.guidance.observations import Observation
from ldmlab.store.files import sha256_file


@dataclass(frozen=True)
class ImageGuidance(Guidance):
    """Guidance towards a picture.

    Args:
        file: the picture; its centre is cut out and resized to the samples' size.
        scale: of the gradient of -1/2 ‖T(picture) - T(decoded)‖², summed over pixels in [-1, 1].
        interval: sigma / alpha where it acts; None: everywhere.
        transform: T; None is the whole image. `transform_options`: T's options, for the id.
    """

    name: ClassVar[str] = "image"

    file: str
    scale: float
    interval: list[float] | None = None
    transform: Observation | None = None
    transform_options: dict[str, Any] | None = None
    log_p: LogP | None = None
    bound: Binding | None = None

    def options(self) -> dict[str, Any]:
        own = {"scale": self.scale, "picture": sha256_file(Path(self.file)), "transform": self.transform_options}
        return with_interval(own, self.interval)

    def card(self) -> dict[str, Any]:
        own = self.options()
        return {**own, "picture": own["picture"][:12]}

    def words(self) -> str:
        return f"image {self.scale:g} ({Path(self.file).name})"

    def check(self, resolution: int) -> None:
        from ldmlab.data.transforms import read_rgb

        path = Path(self.file)
        if not os.path.isfile(path):
            raise ConfigError(f"guidance.image.file={path}: no such file. Give the path of a picture.")
        try:
            read_rgb(path)
        except Exception as error:  # Pillow raises many kinds
            raise ConfigError(
                f"guidance.image.file={path} is not a picture that can be read ({error}). Give a PNG or a JPEG."
            ) from None
        if self.transform is not None:
            self.transform.check(resolution)

    def load(self, results: Results) -> "ImageGuidance":
        from ldmlab.data.batches import to_float
        from ldmlab.data.parcel import on_device
        from ldmlab.data.transforms import fitted, read_picture  # Pillow: an eighth of a second of every start

        pixels = fitted(read_picture(Path(self.file), results.channels), *results.size)
        target_1CHW = to_float(on_device(torch.from_numpy(pixels)[None], results.device))
        seen = target_1CHW if self.transform is None else self.transform(target_1CHW)
        return self.with_values(log_p=resembles(seen, results.decode_with_slope, self.transform))

    def cost(self, cost: SampleCost) -> None:
        through_decoder(cost)

    def wrap(self, denoise: Denoise) -> Denoise:
        assert self.log_p is not None and self.bound is not None
        inside = image_guided(denoise, self.log_p, self.scale, self.bound.schedule)
        return within(inside, denoise, self.interval, self.bound.schedule)


def through_decoder(cost: SampleCost) -> None:
    """The gradient runs back through the denoiser, and forth and back through the decoder."""
    cost.backward = 2.0
    cost.extra += 2 * cost.evaluations * cost.decode


def image_guided(denoise: Denoise, log_p: LogP, scale: float, schedule: Schedule) -> Denoise:
    """Pushed towards an image by the predicted z_0 (paper, App. C): the gradient of log_p(z_0(z_t)) runs through the
    denoiser and what it is wrapped in, so that one call costs a backward pass of all of it.

    Args:
        denoise: the callable to guide; differentiable in z_t.
        log_p: of z_0 (`resembles`).
        scale: of the gradient, at least 0.
        schedule: the denoiser's. Where alpha is 0 nothing is added.
    """

    def guided_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        inner = zt_BCHW.requires_grad  # inside another guidance by gradients, whose graph must stay whole
        with torch.enable_grad():
            leaf_BCHW = zt_BCHW if inner else zt_BCHW.detach().requires_grad_()
            predicted = denoise(leaf_BCHW, t_B, cond)
            total = log_p(predicted.z0).sum()
        gradient_BCHW = torch.autograd.grad(total, leaf_BCHW, retain_graph=inner)[0]
        if not inner:
            predicted = Prediction(predicted.z0.detach(), predicted.eps.detach())
        return pushed(predicted, gradient_BCHW, scale, t_B, schedule)

    return guided_denoise


def resembles(
    target_BCHW: Tensor, decode: Callable[[Tensor], Tensor], transform: Callable[[Tensor], Tensor] | None = None
) -> LogP:
    """The log-probability of App. C: -1/2 ‖y - T(D(z_0))‖², summed over the elements of each image.

    Args:
        target_BCHW: y, of the size that T gives; images in the decoder's range [-1, 1].
        decode: D, latents to images (or the identity, to compare latents).
        transform: T, differentiable: down-sampling, a mask; None is the identity.
    """

    def log_p(z0_BCHW: Tensor) -> Tensor:
        image_BCHW = decode(z0_BCHW)
        seen_BCHW = image_BCHW if transform is None else transform(image_BCHW)
        return -0.5 * (target_BCHW - seen_BCHW).square().flatten(1).sum(dim=1)

    return log_p
