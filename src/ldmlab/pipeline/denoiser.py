"""The denoiser, trained on latents or from a file."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldmlab import build
from ldmlab.data.batches import Batches
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import DataError
from ldmlab.pipeline import weights_denoiser
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.costs import millions, parameters_of
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.latents import LatentsStage, learnt_from, load_learnt_from
from ldmlab.pipeline.stage import Row, Stage, plain
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.training.diffusion_loss import DiffusionLoss
from ldmlab.training.loop import images_at, total_steps
from ldmlab.training.post_hoc_ema import Profile, combine, gamma_of, project
from ldmlab.training.tracking import number

VALIDATION_IMAGES = 128  # whose loss is measured during training
LOOSE = 0.1  # relative error of an average's profile that is worth a note


class DenoiserStage(Stage):
    """weights.safetensors, ema.safetensors, power averages, snapshots at named image counts, the log."""

    name: ClassVar[str] = "denoiser"
    version: ClassVar[int] = 2
    due: ClassVar[str | None] = "denoiser"

    @property
    def label(self) -> str:
        choices = self.plan.resolved.choices
        return f"{choices['ldm']}-{choices['ae']}"

    @property
    def trains(self) -> bool:
        return self.cfg.ldm.fit is not None

    def own(self) -> dict[str, Any]:
        """`ldm`, `cond`, `objective` without what changes only memory or speed, and without `budget`, which became the width."""
        if self.cfg.ldm.weights is not None:
            return weights_denoiser.options(self.cfg)
        ldm, cond, objective = (plain(self.cfg[group]) for group in ("ldm", "cond", "objective"))
        ldm["network"].pop("checkpointing", None)
        for name in ("budget", "weights"):
            ldm.pop(name)
        cond.pop("label")
        if objective.get("loss") != "huber":
            objective.pop("delta", None)  # Huber's alone
        tile = {} if LatentsStage.of(self.plan) else {"tile": self.cfg.ae.tile}
        return {"ldm": ldm, "cond": cond, "objective": objective, **tile}

    def upstream(self) -> dict[str, Stage | str]:
        """An imported one learns nothing from this data."""
        return (
            {"autoencoder": self.plan.stage(FirstStage)} if self.cfg.ldm.weights is not None else learnt_from(self.plan)
        )

    def forward_flops(self) -> float:
        return self.plan.resolved.costs.forward

    def row(self) -> Row:
        model, costs, fit = self.plan.resolved.denoiser, self.plan.resolved.costs, self.cfg.ldm.fit
        images = 0 if fit is None else total_steps(fit) * fit.batch_size
        gigaflops = f" · {3 * costs.forward / 1e9:.3g} GFLOP/img" if costs.forward and fit is not None else ""
        origin = f"{number(images)} img" if fit is not None else f"imported from {Path(self.cfg.ldm.weights).name}"
        what = f"{type(model.network).__name__} {millions(parameters_of(model.network))}{gigaflops} · {origin}"
        encode = 0.0 if LatentsStage.of(self.plan) else costs.encode
        return Row(what, images, 3 * costs.forward + encode, 20 * parameters_of(model) / 1e6)

    def work(self, ctx: Context, folder: Path) -> float | None:
        ae = self.plan.stage(FirstStage).load(ctx)
        model = build.denoiser(ctx.cfg, ae, ctx.data)
        if ctx.cfg.ldm.weights is not None:
            if ctx.main:
                weights_denoiser.install(ctx.cfg, model, folder)
            return None
        fit, objective = ctx.cfg.ldm.fit, self.plan.resolved.objective
        loss = DiffusionLoss(model, ae, objective, Draws(ctx.cfg.ldm.seed), ctx.cfg.cond.drop, fit.batch_size)
        size = min(VALIDATION_IMAGES, len(ctx.val))
        probe = DiffusionLoss(model, ae, objective, Draws(ctx.cfg.ldm.seed + 1), 0.0, size)
        held = Batches(ctx.val, size, size, ctx.cfg.ldm.seed, ctx.device).step(0)[0]

        @torch.no_grad()
        def validate() -> dict[str, float]:  # the same images, times and noise at every call
            model.eval()
            logs = probe.loss(held, "denoiser", 0)[1]
            model.train()
            return {k: float(v) for k, v in logs.items()}

        data = load_learnt_from(self.plan, ctx)
        return ctx.train(
            self.address, folder, loss, data, fit, validate, power_ema=ctx.cfg.ldm.power_ema, seed=ctx.cfg.ldm.seed
        ).seconds

    def load(self, ctx: Context, images: int | None = None) -> Denoiser:
        """With the weights that `eval.weights` names; of a snapshot when `images` says which."""
        folder = self.make(ctx)
        model = build.denoiser(ctx.cfg, self.plan.stage(FirstStage).load(ctx), ctx.data)
        final = self.plan.resolved.snapshots[-1]
        if images is not None and (folder / "snapshots" / f"{images:012d}").exists():
            folder = folder / "snapshots" / f"{images:012d}"
        elif images is not None and images != final:
            raise DataError(f"{folder} has no snapshot at {images} images.")
        if ctx.cfg.eval.ema_width is not None:
            model.load_state_dict(self._average(ctx, images))
        else:
            name = "ema" if ctx.cfg.eval.weights == "ema" else "weights"
            weights_denoiser.load_into(model, load_tensors(folder / f"{name}.safetensors"))
        return frozen(model, ctx.device)  # type: ignore[return-value]

    def _average(self, ctx: Context, images: int | None) -> dict[str, Tensor]:
        """Weights averaged with the profile of `eval.ema_width`, as they would be after `images` (None: all of training)."""
        fit, widths = ctx.cfg.ldm.fit, list(ctx.cfg.ldm.power_ema)
        folder, end = ctx.store.folder(self.address), images_at(fit, 1.0)
        images = end if images is None else images
        kept = sorted({images_at(fit, fraction) for fraction in fit.snapshots} - {end})
        places = {at: folder / "snapshots" / f"{at:012d}" for at in kept if at <= images} | (
            {end: folder} if images == end else {}
        )
        stored = [
            (Profile(at, gamma_of(w)), place / f"power_{w:g}.safetensors")
            for at, place in places.items()
            for w in widths
        ]
        fitted = project([profile for profile, _ in stored], Profile(images, gamma_of(ctx.cfg.eval.ema_width)))
        if fitted.error > LOOSE:
            ctx.say(
                f" note: eval.ema_width={ctx.cfg.eval.ema_width:g} is off by {fitted.error:.0%} (of its profile's size): "
                f"{len(stored)} stored averages cannot make it. More ldm.fit.snapshots, or a width nearer to ldm.power_ema."
            )
        return combine(fitted.coefficients, [partial(load_tensors, path) for _, path in stored])
