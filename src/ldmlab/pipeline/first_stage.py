"""The first stage: an autoencoder, trained or from a file, with the scale of its latent."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.health import Health
from ldmlab.autoencoders.pca import PCANetwork
from ldmlab.autoencoders.regularisers.base import Posterior
from ldmlab.autoencoders.scale import measure_scale
from ldmlab.config import execution
from ldmlab.data.base import to_batch
from ldmlab.data.batches import Batches, to_float, to_uint8
from ldmlab.data.parcel import on_device
from ldmlab.pipeline import snapshots, weights_first_stage
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.continuation import Continuation, find
from ldmlab.pipeline.costs import millions, parameters_of
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.sheets import spread
from ldmlab.pipeline.stage import Row, Stage, deciding, plain, trained
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors, save_tensors
from ldmlab.store.files import atomic, write_json
from ldmlab.training.autoencoder_loss import AutoencoderLoss
from ldmlab.training.kept import Start
from ldmlab.training.loop import Progressed, total_steps

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ldmlab.pipeline.plan import Plan

VALIDATION_IMAGES = 128  # for the numbers during training; the scores afterwards use eval.reconstructions

FIT_BATCH = 128  # images at once in a closed-form fit; fixed, for the order of a sum is part of its last digits


class FirstStage(Stage):
    """autoencoder.safetensors with its scale; for a trained one weights, average, snapshots and log."""

    name: ClassVar[str] = "autoencoder"
    version: ClassVar[int] = 3
    due: ClassVar[str | None] = "autoencoder"

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["ae"]

    @property
    def trains(self) -> bool:
        return self.cfg.ae.fit is not None

    def own(self) -> dict[str, Any]:
        """Imported: the file and how its latent is scaled. Trained: `ae` without what changes only memory or speed."""
        if self.cfg.ae.weights is not None:
            return weights_first_stage.options(self.cfg)[0]
        ae: dict[str, Any] = plain(self.cfg.ae)
        if ae["fit"] is not None:
            ae["fit"] = trained(ae["fit"])
        ae |= {name: deciding(ae[name]) for name in ("network", "regulariser")}
        for name in ("train", "decoder_fit", "tile", "recipe", "weights"):
            ae.pop(name)
        if ae["latent_scale"]["mode"] != "given":
            ae["latent_scale"] = {k: v for k, v in ae["latent_scale"].items() if k not in ("scale", "shift")}
        return {"ae": ae}

    def upstream(self) -> dict[str, Stage | str]:
        """An imported one stands on the data only where its scale is measured on it."""
        data: dict[str, Stage | str] = {"data": self.plan.stage(DataStage)}
        if self.cfg.ae.weights is not None:
            return data if weights_first_stage.options(self.cfg)[1] else {}
        return data | classifier_of(self.plan)

    def row(self) -> Row:
        resolved = self.plan.resolved
        ae, (c, h, w), fit = resolved.autoencoder, resolved.latent_shape, self.cfg.ae.fit
        what = f"f=1 · pixels {h}x{w}x{c}"
        if parameters_of(ae):
            kind = type(ae.regulariser).__name__
            what = f"{kind} f={ae.f} c={c} · {millions(parameters_of(ae))} · latent {h}x{w}x{c}"
        if isinstance(ae.network, PCANetwork):
            what = f"PCA f={ae.f} c={ae.c}, {type(ae.regulariser).__name__} · in closed form · latent {h}x{w}x{c}"
        if self.cfg.ae.weights is not None:
            measured = self.cfg.ae.latent_scale.mode not in weights_first_stage.UNMEASURED
            images = self.cfg.ae.latent_scale.images if measured else 0
            return Row(f"{what} · imported from {Path(self.cfg.ae.weights).name}", images, resolved.costs.encode)
        if fit is None:
            return Row(what)
        left = snapshots.megabytes(fit, parameters_of(ae), int(fit.ema is not None))
        flops = 3 * (resolved.costs.encode + resolved.costs.decode)
        return Row(f"{what}{snapshots.words(fit)}", total_steps(fit) * fit.batch_size, flops, left)

    @functools.cached_property
    def continuation(self) -> Continuation | None:
        fit = self.cfg.ae.fit
        return None if fit is None else find(self, "ae", fit.keep_state)

    def work(self, ctx: Context, folder: Path) -> float | None:
        ae, seconds, fit = build.autoencoder(ctx.cfg), None, ctx.cfg.ae.fit
        if ctx.cfg.ae.weights is None:
            ae.to(ctx.device).fit_linear(lambda: training_images(ctx, ae.network.fit_images))
        if fit is not None:
            found = self.continuation
            start = None if found is None else found.start
            seconds = train_autoencoder(self, ctx, folder, ae, fit, fit.keep_state, start).seconds
            if fit.ema is not None:
                ae.load_state_dict(load_tensors(folder / "ema.safetensors"))
        source = weights_first_stage.install(ctx.cfg, ae) if ctx.cfg.ae.weights is not None else None
        _set_scale(ctx, frozen(ae, ctx.device))  # type: ignore[arg-type]
        if ctx.main:
            if source:
                write_json(folder / "imported.json", source)
            with atomic(folder / "autoencoder.safetensors") as beside:
                save_tensors(beside, ae.state_dict())
        return seconds

    def load(self, ctx: Context) -> Autoencoder:
        return load_autoencoder(ctx, self.make(ctx))


def classifier_of(plan: "Plan") -> dict[str, Stage | str]:
    """The shapes classifier, where the first stage's perceptual distance looks through it."""
    return {"classifier": extractor_of(plan)} if build.needs_classifier(plan.resolved.cfg) else {}


def train_autoencoder(
    stage: Stage,
    ctx: Context,
    folder: Path,
    ae: Autoencoder,
    fit: "DictConfig",
    keep_state: bool = False,
    start: Start | None = None,
) -> Progressed:
    """`ae` trained with `ae.loss` and the budget `fit`, from `start` on where there is one; PSNR of some val images in the log."""
    classifier = load_extractor(stage.plan, ctx) if build.needs_classifier(ctx.cfg) else None
    loss = build.first_stage_loss(ctx.cfg, classifier).to(ctx.device)
    images = [_image(ctx, ctx.val, i) for i in spread(len(ctx.val), VALIDATION_IMAGES)]
    training = AutoencoderLoss(ae, loss, Draws(ctx.cfg.ae.seed))
    return ctx.train(
        stage.address,
        folder,
        training,
        ctx.data,
        fit,
        _psnr_of(ae, images, ctx.device),
        execution.group_of(ctx.cfg),
        Health().health_check,
        seed=ctx.cfg.ae.seed,
        keep_state=keep_state,
        start=start,
    )


def load_autoencoder(ctx: Context, folder: Path) -> Autoencoder:
    """A finished first stage, or one whose decoder learnt on, frozen on the device."""
    ae = build.autoencoder(ctx.cfg)
    ae.load_state_dict(load_tensors(folder / "autoencoder.safetensors"))
    ae.tile = ctx.cfg.ae.tile
    return frozen(ae, ctx.device)  # type: ignore[return-value]


def training_images(ctx: Context, most: int | None = None) -> Iterator[Tensor]:
    """Training images not mirrored, spread evenly over all of them, in their order; the same on every rank."""
    indices = spread(len(ctx.data), len(ctx.data) if most is None else min(most, len(ctx.data)))
    for begin in range(0, len(indices), FIT_BATCH):
        batch = to_batch(ctx.data.__getitems__(indices[begin : begin + FIT_BATCH]))
        yield to_float(on_device(batch["image"], ctx.device))


def _image(ctx: Context, data: Any, index: int) -> Tensor:
    return to_batch([data[index]])["image"]


def _psnr_of(ae: Autoencoder, images: list[Tensor], device: torch.device) -> Callable[[], dict[str, float]]:
    """Mean PSNR in dB over some val images (uint8), 8-bit rounded; quick, for the log. The training path: raw latent, posterior mean."""
    image_BCHW = to_float(on_device(torch.cat(images), device))

    @torch.no_grad()
    def psnr() -> dict[str, float]:
        ae.eval()
        error = [
            (to_uint8(part).float() - to_uint8(ae(part, None).image_BCHW).float()).square().mean(dim=(1, 2, 3))
            for part in image_BCHW.split(32)
        ]
        ae.train()
        mse_B = torch.cat(error).clamp_min(1e-4)
        return {"psnr": float((10 * torch.log10(255**2 / mse_B)).mean())}

    return psnr


@torch.no_grad()
def _set_scale(ctx: Context, ae: Autoencoder) -> None:
    """Set the latent's scale: given, or measured on training images (paper App. G; `autoencoders/scale.py`)."""
    if (fixed := weights_first_stage.fixed_scale(ctx.cfg)) is not None:
        ae.set_scale(fixed.scale_C11, fixed.shift_C11)
        return
    scale = ctx.cfg.ae.latent_scale
    n = min(scale.images, len(ctx.data))
    size = ctx.cfg.ae.fit.batch_size if scale.mode == "first_batch_std" and ctx.cfg.ae.fit else ctx.cfg.eval.batch_size
    order = Batches(ctx.data, n, n, ctx.cfg.ae.seed, ctx.device).order
    indices = [order[i] for i in range(n)]

    def posteriors() -> Iterator[Posterior]:
        for begin in range(0, n, size):
            batch = to_batch(ctx.data.__getitems__(indices[begin : begin + size]))
            yield ae.posterior(ae.moments(to_float(on_device(batch["image"], ctx.device))))

    found = measure_scale(posteriors(), scale.mode)
    ae.set_scale(found.scale_C11, found.shift_C11)
