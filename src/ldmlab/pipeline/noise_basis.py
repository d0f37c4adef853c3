"""The same noise for every latent: drawn in pixels and projected on orthonormal components of patches (`eval.noise=pixels`).

Two runs of other f then begin from two views of one noise image, so that their pictures show f and nothing else. An orthonormal
projection of white noise is white, so the distribution of the samples stays what it is.

Shape letters: B batch, C channels, P = 3·f·f values of a patch, M patches of an image, R side of the image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ldmlab.autoencoders.linear_path import patch_moments, patches, principal_components
from ldmlab.errors import ConfigError
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.first_stage import training_images
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.randomness import ImageNoise
from ldmlab.store.checkpoint import load_tensors, save_tensors
from ldmlab.store.files import atomic
from ldmlab.terminal import number

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

IMAGES = 50_000  # training images behind the components, at most


class PixelNoise(ImageNoise):
    """Standard normal noise of a latent: of the pixels, in C orthonormal components of each f×f patch. Call it once per draw.

    basis_CP: rows of unit length at right angles, in the order of `linear_path.patches`; None: the pixels' noise as it is (f = 1).
    """

    def __init__(
        self,
        seeds: Sequence[int],
        resolution: int,
        f: int,
        basis_CP: Tensor | None,
        device: torch.device | str = "cpu",
        image_channels: int = 3,
    ):
        super().__init__(seeds, (image_channels, resolution, resolution), device)
        self.f, self.basis_CP = f, None if basis_CP is None else basis_CP.to(device)

    def __call__(self) -> Tensor:
        """The next draw, float32, [B, C, R/f, R/f]; each image by itself, so that the batch changes no bit of it."""
        noise_B3RR = super().__call__()
        if self.basis_CP is None:
            return noise_B3RR
        side = self.shape[1] // self.f
        return torch.stack([self._projected(each_3RR).view(-1, side, side) for each_3RR in noise_B3RR])

    def _projected(self, noise_3RR: Tensor) -> Tensor:
        assert self.basis_CP is not None
        return self.basis_CP @ patches(noise_3RR[None], self.f).T


class NoiseBasisStage(Stage):
    """basis.safetensors: the first c principal components of f×f patches of the training images, as rows of unit length."""

    name: ClassVar[str] = "noise_basis"

    @property
    def label(self) -> str:
        return f"f{self.f}_c{self.c}"

    @property
    def f(self) -> int:
        return self.plan.resolved.autoencoder.f

    @property
    def c(self) -> int:
        return self.plan.resolved.autoencoder.c

    @property
    def images(self) -> int:
        return min(IMAGES, len(self.plan.resolved.data))

    def own(self) -> dict[str, Any]:
        return {"f": self.f, "c": self.c, "images": self.images}

    def upstream(self) -> dict[str, Stage | str]:
        return {"data": self.plan.stage(DataStage)}

    def check(self) -> None:
        most = self.plan.resolved.autoencoder.network.image_channels * self.f**2
        if self.c > most:
            raise ConfigError(
                f"eval.noise=pixels: this latent has {self.c} channels, and a patch of {self.f}x{self.f} pixels gives {most} "
                "independent numbers at most. Set eval.noise=latent."
            )

    def row(self) -> Row:
        return Row(f"{self.c} components of {self.f}x{self.f} patches · {number(self.images)} img", self.images)

    def work(self, ctx: Context, folder: Path) -> None:
        if ctx.main:
            moments = patch_moments(self.f, training_images(ctx, self.images))
            _, basis_PP = principal_components(moments.covariance())
            with atomic(folder / "basis.safetensors") as beside:
                save_tensors(beside, {"basis_CP": basis_PP[: self.c].float().contiguous().cpu()})
        ctx.barrier()

    def load(self, ctx: Context) -> Tensor:
        """basis_CP, on the CPU."""
        return load_tensors(self.make(ctx) / "basis.safetensors")["basis_CP"]


def upstream(plan: "Plan") -> dict[str, Stage | str]:
    """What the noise of samples stands on: the basis with eval.noise=pixels, nothing where a latent's values are the pixels'."""
    wanted = plan.resolved.cfg.eval.noise == "pixels" and plan.resolved.autoencoder.f > 1
    return {"noise": plan.stage(NoiseBasisStage)} if wanted else {}


def noise_of(plan: "Plan", ctx: Context) -> Any:
    """(seeds, shape of the latent, device) → the noise that samples are drawn from."""
    if plan.resolved.cfg.eval.noise != "pixels":
        return ImageNoise
    on, f = upstream(plan).get("noise"), plan.resolved.autoencoder.f
    channels = plan.resolved.autoencoder.network.image_channels
    basis_CP = on.load(ctx) if isinstance(on, NoiseBasisStage) else None
    return lambda seeds, shape, device: PixelNoise(seeds, shape[1] * f, f, basis_CP, device, channels)
