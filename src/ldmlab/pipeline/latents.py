"""The cache of encoded training images, and what the denoiser learns from: the cache, or the images themselves."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.identity import IdentityNetwork
from ldmlab.data import latent_cache
from ldmlab.data.parcel import on_device
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.stage import Row, Stage

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


def learnt_from(plan: "Plan") -> dict[str, Stage | str]:
    """Role → what the denoiser learns from: the cached latents, or the first stage and the data."""
    if cached := LatentsStage.of(plan):
        return {"latents": cached[0]}
    return {"autoencoder": plan.stage(FirstStage), "data": plan.stage(DataStage)}


def load_learnt_from(plan: "Plan", ctx: Context) -> Any:
    """The data set that the denoiser trains on."""
    cached = LatentsStage.of(plan)
    return cached[0].load(ctx) if cached else ctx.data


class Posteriors(NamedTuple):
    """Standardised latents of some training images: means, the variances of their samples (None: none), rows in the data."""

    mean_BCHW: Tensor
    variance_BCHW: Tensor | None
    rows: list[int]


READ = 128  # images at once; fixed, for the order of a sum is part of its last digits


@torch.no_grad()
def posteriors(
    data: Any, ae: Autoencoder, rows: list[int], device: torch.device, begin: int = 0
) -> Iterator[list[Posteriors]]:
    """What the denoiser learns from, in order and `READ` images at a time from place `begin` of `rows` on: as it is and,
    where the data is mirrored, mirrored. `data`: of `load_learnt_from`.
    """
    for first in range(begin, len(rows), READ):
        part = rows[first : first + READ]
        if isinstance(data, latent_cache.LatentCache):
            moments_BMCHW = on_device(data.moments(part), device).float()
        else:
            moments_BMCHW = on_device(torch.from_numpy(latent_cache.encode(data, part, ae.moments, device)), device)
        found = []
        for moments_BCHW in moments_BMCHW.unbind(1):
            variance_BCHW = ae.posterior(moments_BCHW).variance_BCHW
            scaled = None if variance_BCHW is None else variance_BCHW * ae.scale.square()
            found.append(Posteriors(ae.sample(moments_BCHW), scaled, part))
        yield found


def reads_cache(cfg: DictConfig, ae: Autoencoder) -> bool:
    """Whether the denoiser learns from cached latents. In pixel space a cache would be a copy; an imported one learns nothing."""
    unread = isinstance(ae.network, IdentityNetwork) or cfg.ldm.weights is not None
    return cfg.latents.cache == "always" or (cfg.latents.cache == "auto" and not unread)


class LatentsStage(Stage):
    """moments-*.npy, one block each 2 048 images; latents.json; certificate.npy, by which `latents.verify` knows them."""

    name: ClassVar[str] = "latents"
    version: ClassVar[int] = 2
    due: ClassVar[str | None] = "latents"
    _verified = False  # in this command

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [plan.stage(cls)] if reads_cache(plan.resolved.cfg, plan.resolved.autoencoder) else []

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["ae"]

    def own(self) -> dict[str, Any]:
        return {"dtype": self.cfg.latents.dtype, "tile": self.cfg.ae.tile}

    def upstream(self) -> dict[str, Stage | str]:
        return {"autoencoder": self.plan.stage(FirstStage), "data": self.plan.stage(DataStage)}

    def row(self) -> Row:
        resolved = self.plan.resolved
        c, h, w = resolved.latent_shape
        mirrors, channels = 2 if resolved.data.flip else 1, resolved.autoencoder.regulariser.channels_in(c)
        images = len(resolved.data) * mirrors
        megabytes = images * channels * h * w * (2 if self.cfg.latents.dtype == "float16" else 4) / 1e6
        what = f"{h}x{w}x{channels} moments{', both flips' if mirrors == 2 else ''}"
        return Row(what, images, resolved.costs.encode, megabytes)

    def work(self, ctx: Context, folder: Path) -> None:
        ae = self.plan.stage(FirstStage).load(ctx)
        latent_cache.encode_all(
            ctx.data, ae.moments, folder, ctx.cfg.latents.dtype, ctx.device, ctx.cfg.eval.batch_size, ctx.ranks,
        )  # fmt: skip

    def make(self, ctx: Context) -> Path:
        folder = super().make(ctx)
        if ctx.cfg.latents.verify and not self._verified:
            self._verified = True
            found = latent_cache.LatentCache(folder, ctx.data)
            worst = latent_cache.verify(found, self.plan.stage(FirstStage).load(ctx).moments, ctx.device)
            images = len(found.card["certificate"])
            ctx.say(f" latents {self.address.id} verified: {images} images, largest difference {worst:.2g} std")
        return folder

    def load(self, ctx: Context) -> latent_cache.LatentCache:
        return latent_cache.LatentCache(self.make(ctx), ctx.data, "image" in self.plan.resolved.conditioner.needs)
