"""The denoiser, trained on latents or from a file."""

import functools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldmlab import build
from ldmlab.config import execution
from ldmlab.data.batches import Batches
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import DataError
from ldmlab.networks.compiled import compile_blocks
from ldmlab.pipeline import snapshots, weights_denoiser
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.continuation import Continuation, find
from ldmlab.pipeline.costs import millions, parameters_of
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.floor import floor_check, write_floor
from ldmlab.pipeline.latents import LatentsStage, learnt_from, load_learnt_from
from ldmlab.pipeline.learning_rate import LearningRateStage
from ldmlab.pipeline.stage import Row, Stage, conditioning, deciding, plain, trained
from ldmlab.pipeline.tokenizer import tokenizer_of, trained_tokenizer
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.terminal import number
from ldmlab.training.diffusion_loss import DiffusionLoss
from ldmlab.training.kept import Start, snapshot_folder
from ldmlab.training.loop import Progressed, images_at, total_steps
from ldmlab.training.post_hoc_ema import Profile, combine, gamma_of, project

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

VALIDATION_IMAGES = 128  # whose loss is measured during training
LARGE = 0.05  # a conditioner with so large a share of the network's parameters has its own in the plan
LOOSE = 0.1  # relative error of an average's profile that is worth a note


class DenoiserStage(Stage):
    """weights.safetensors, ema.safetensors, power averages, snapshots at named image counts, the log, floor.json."""

    name: ClassVar[str] = "denoiser"
    version: ClassVar[int] = 3
    due: ClassVar[str | None] = "denoiser"

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [] if plan.resolved.denoiser.closed_form else [plan.stage(cls)]

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
        ldm, objective = plain(self.cfg.ldm), plain(self.cfg.objective)
        ldm["network"] = deciding(self.cfg.ldm.network)
        for name in ("budget", "weights", "start"):
            ldm.pop(name)
        ldm |= weights_denoiser.start_of(self.cfg)
        if LearningRateStage.of(self.plan):
            ldm["fit"].pop("lr")  # the search that finds it is upstream
        ldm["fit"] = trained(ldm["fit"])
        if ldm["network"].get("dropout"):
            ldm["fit"]["dropout_drawn"] = "by step"  # it was by process once, which no restart could repeat
        if objective.get("loss") != "huber":
            objective.pop("delta", None)  # Huber's alone
        tile = {} if LatentsStage.of(self.plan) else {"tile": self.cfg.ae.tile}
        return {
            "ldm": ldm,
            "cond": conditioning(self.cfg, self.plan.resolved.conditioner),
            "objective": objective,
            **tile,
        }

    def upstream(self) -> dict[str, Stage | str]:
        """An imported one learns nothing from this data."""
        if self.cfg.ldm.weights is not None:
            return {"autoencoder": self.plan.stage(FirstStage), **tokenizer_of(self.plan)}
        tuned = LearningRateStage.of(self.plan)
        return learnt_from(self.plan) | tokenizer_of(self.plan) | ({"learning_rate": tuned[0]} if tuned else {})

    def facts(self) -> dict[str, Any]:
        """What its budget chose, and what is unequal then; the learning rate that was found."""
        budget, tuned = self.plan.resolved.budget, LearningRateStage.of(self.plan)
        found = {} if budget is None else {"budget": budget}
        return found | ({"learning_rate": tuned[0].result()} if tuned else {})

    def forward_flops(self) -> float:
        return self.plan.resolved.costs.forward

    def row(self) -> Row:
        model, costs, fit = self.plan.resolved.denoiser, self.plan.resolved.costs, self.cfg.ldm.fit
        images = 0 if fit is None else total_steps(fit) * fit.batch_size
        gigaflops = f" · {costs.training / 1e9:.3g} GFLOP/img" if costs.forward and fit is not None else ""
        origin = (
            f"imported from {Path(self.cfg.ldm.weights).name}"
            if fit is None
            else f"{number(images)} img{snapshots.words(fit)}"
        )
        network, reader = parameters_of(model.network), parameters_of(cast(nn.Module, model.conditioner))
        beside = f" + {type(model.conditioner).__name__} {millions(reader)}" if reader >= LARGE * network else ""
        what = f"{type(model.network).__name__} {millions(network)}{beside}{gigaflops} · {origin}"
        encode = 0.0 if LatentsStage.of(self.plan) else costs.encode
        left = (
            4 * parameters_of(model) / 1e6
            if fit is None
            else snapshots.megabytes(fit, parameters_of(model), self.averages)
        )
        return Row(what, images, costs.training + encode, left)

    @property
    def averages(self) -> int:
        """How many averages of the weights are kept."""
        return (self.cfg.ldm.fit.ema is not None) + len(self.cfg.ldm.power_ema)

    @functools.cached_property
    def continuation(self) -> Continuation | None:
        fit = self.cfg.ldm.fit
        rates = [
            s.result()["rate"] for s in LearningRateStage.of(self.plan) if self.plan.store.done(s.address) is not None
        ]
        return None if fit is None else find(self, "ldm", fit.keep_state, *rates)

    def work(self, ctx: Context, folder: Path) -> float | None:
        if ctx.cfg.ldm.weights is not None:
            ae = self.plan.stage(FirstStage).load(ctx)
            model = build.denoiser(ctx.cfg, ae, ctx.data, tokenizer=trained_tokenizer(self.plan, ctx))
            if ctx.main:
                weights_denoiser.install(ctx.cfg, model, folder)
            return None
        fit = self.tuned(ctx, ctx.cfg.ldm.fit)
        found = find(self, "ldm", fit.keep_state, fit.lr) if LearningRateStage.of(self.plan) else self.continuation
        start = None if found is None else found.start
        return train_denoiser(self, ctx, folder, fit, start, list(ctx.cfg.ldm.power_ema), fit.keep_state).seconds

    def tuned(self, ctx: Context, fit: DictConfig) -> DictConfig:
        """The budget with the learning rate that tune=lr finds; itself without."""
        for search in LearningRateStage.of(self.plan):
            fit = build.editable(fit)
            fit.lr = search.load(ctx)
        return fit

    def load(self, ctx: Context, images: int | None = None) -> Denoiser:
        """With the weights that `eval.weights` names; of a snapshot when `images` says which."""
        folder = self.make(ctx)
        final = self.plan.resolved.snapshots[-1]
        if images is not None and snapshot_folder(folder, images).exists():
            folder = snapshot_folder(folder, images)
        elif images is not None and images != final:
            raise DataError(f"{folder} has no snapshot at {images} images.")
        averaged = None if ctx.cfg.eval.ema_width is None else self._average(ctx, images)
        return load_denoiser(self.plan, ctx, folder, averaged)

    def _average(self, ctx: Context, images: int | None) -> dict[str, Tensor]:
        """Weights averaged with the profile of `eval.ema_width`, as they would be after `images` (None: all of training)."""
        fit, widths = ctx.cfg.ldm.fit, list(ctx.cfg.ldm.power_ema)
        folder, end = ctx.store.folder(self.address), images_at(fit, 1.0)
        images = end if images is None else images
        places = {
            at: folder if at == end else snapshot_folder(folder, at)
            for at in sorted(snapshots.kept(fit))
            if at <= images
        }
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


def train_denoiser(
    stage: Stage,
    ctx: Context,
    folder: Path,
    fit: DictConfig,
    start: Start | None,
    widths: Sequence[float] = (),
    keep_state: bool = False,
) -> Progressed:
    """The run's denoiser trained with the budget `fit`, from `start` on where there is one; its loss on some val images in the log.

    widths: of the power-function averages that are kept.
    """
    plan, cfg = stage.plan, ctx.cfg
    ae, objective = plan.stage(FirstStage).load(ctx), plan.resolved.objective
    model = build.denoiser(cfg, ae, ctx.data, tokenizer=trained_tokenizer(plan, ctx))
    weights_denoiser.begin(cfg, model)
    loss = DiffusionLoss(model, ae, objective, Draws(cfg.ldm.seed), build.drop(cfg), fit.batch_size)
    size = min(VALIDATION_IMAGES, len(ctx.val))
    probe = DiffusionLoss(model, ae, objective, Draws(cfg.ldm.seed + 1), 0.0, size)
    held = Batches(ctx.val, size, size, cfg.ldm.seed, ctx.device).step(0)[0]

    @torch.no_grad()
    def validate() -> dict[str, float]:  # the same images, times and noise at every call
        model.eval()
        logs = probe.loss(held, "denoiser", 0)[1]
        model.train()
        return dict(zip(logs, torch.stack(list(logs.values())).tolist(), strict=True))

    data = load_learnt_from(plan, ctx)
    write_floor(ctx, folder, data, ae, objective)
    return ctx.train(
        stage.address, folder, loss, data, fit, validate, health_check=floor_check(folder, -(-fit.images // fit.batch_size)),
        power_ema=widths, seed=cfg.ldm.seed, keep_state=keep_state, start=start,
        positions=None if execution.recomputes(cfg) else math.prod(plan.resolved.latent_shape[1:]),
    )  # fmt: skip


def load_denoiser(plan: "Plan", ctx: Context, folder: Path, averaged: dict[str, Tensor] | None = None) -> Denoiser:
    """Frozen, with the weights of `folder` that `eval.weights` names, or with `averaged`."""
    ae, tokenizer = plan.stage(FirstStage).load(ctx), trained_tokenizer(plan, ctx)
    model = build.denoiser(ctx.cfg, ae, ctx.data, tokenizer=tokenizer)
    name = "ema" if ctx.cfg.eval.weights == "ema" else "weights"
    weights_denoiser.load_into(model, averaged or load_tensors(folder / f"{name}.safetensors"))
    frozen(model, ctx.device)
    if execution.compiles(ctx.cfg, ctx.device):
        compile_blocks(model.network)
    if execution.records(ctx.cfg, ctx.device):
        model.record()
    return model
