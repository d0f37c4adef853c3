"""A regression network of the denoiser's size, and its answers to the samples' conditions: what a generative model is compared
with where a single right answer exists (super-resolution)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldmlab import build
from ldmlab.conditioning.compose import completed
from ldmlab.data.batches import to_uint8
from ldmlab.data.parcel import batch_on_device
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.metrics.superresolution import REGRESSED
from ldmlab.pipeline import sampling
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.costs import millions, parameters_of
from ldmlab.pipeline.decoder import decoding, load_decoding
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.latents import learnt_from, load_learnt_from
from ldmlab.pipeline.stage import Row, Stage, conditioning, deciding, trained
from ldmlab.pipeline.tokenizer import tokenizer_of, trained_tokenizer
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.terminal import number
from ldmlab.training.loop import total_steps
from ldmlab.training.regression_loss import RegressionLoss, predicted


class RegressionStage(Stage):
    """weights.safetensors, ema.safetensors: the denoiser's network and conditioner, trained as long as it, on the mean."""

    name: ClassVar[str] = "regression"
    version: ClassVar[int] = 2

    @classmethod
    def of(cls, plan: Any) -> list[Stage]:
        return [] if plan.resolved.cfg.ldm.fit is None else [plan.stage(cls)]

    def _fit(self) -> Any:
        """The denoiser's budget; no snapshots of it are kept."""
        fit = build.editable(self.cfg.ldm.fit)
        fit.snapshots = []
        return fit

    def own(self) -> dict[str, Any]:
        cond = conditioning(self.cfg, self.plan.resolved.conditioner)
        cond.pop("drop", None)
        return {
            "network": deciding(self.cfg.ldm.network),
            "fit": trained(self._fit()),
            "cond": cond,
            "seed": self.cfg.ldm.seed,
        }

    def upstream(self) -> dict[str, Stage | str]:
        return learnt_from(self.plan) | tokenizer_of(self.plan)

    @property
    def trains(self) -> bool:
        return True

    def row(self) -> Row:
        model, costs, fit = self.plan.resolved.denoiser, self.plan.resolved.costs, self.cfg.ldm.fit
        images = total_steps(fit) * fit.batch_size
        what = (
            f"{type(model.network).__name__} {millions(parameters_of(model.network))} · the mean · {number(images)} img"
        )
        return Row(what, images, 3 * costs.forward, 4 * parameters_of(model) / 1e6)

    def work(self, ctx: Context, folder: Path) -> float:
        ae = self.plan.stage(FirstStage).load(ctx)
        loss = RegressionLoss(self._network(ctx, ae), ae, Draws(ctx.cfg.ldm.seed))
        data = load_learnt_from(self.plan, ctx)
        return ctx.train(self.address, folder, loss, data, self._fit(), seed=ctx.cfg.ldm.seed).seconds

    def _network(self, ctx: Context, ae: Any) -> Denoiser:
        return build.denoiser(ctx.cfg, ae, ctx.data, tokenizer=trained_tokenizer(self.plan, ctx))

    def load(self, ctx: Context) -> Denoiser:
        name = "weights" if ctx.cfg.ldm.fit.ema is None else "ema"
        model, folder = self._network(ctx, self.plan.stage(FirstStage).load(ctx)), self.make(ctx)
        model.load_state_dict(load_tensors(folder / f"{name}.safetensors"))
        return frozen(model, ctx.device)  # type: ignore[return-value]


class RegressedStage(Stage):
    """images.npy: the regression network's answer to the condition of each sample."""

    name: ClassVar[str] = REGRESSED
    version: ClassVar[int] = 2

    @classmethod
    def of(cls, plan: Any) -> list[Stage]:
        return [plan.stage(cls)] if RegressionStage.of(plan) else []

    def own(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "n": cfg.eval.samples,
            "label_mode": cfg.eval.label_mode,
            "label": cfg.cond.label,
            "seed": cfg.eval.seed,
            "tile": cfg.ae.tile,
        } | ({} if cfg.cond.prompt is None else {"prompt": cfg.cond.prompt})

    def upstream(self) -> dict[str, Stage | str]:
        return {"regression": self.plan.stage(RegressionStage), **decoding(self.plan)}

    def row(self) -> Row:
        costs, n = self.plan.resolved.costs, self.cfg.eval.samples
        return Row(f"{number(n)} answers", n, costs.forward + costs.decode)

    def work(self, ctx: Context, folder: Path) -> None:
        ae, model = load_decoding(self.plan, ctx), self.plan.stage(RegressionStage).load(ctx)
        n, shape = ctx.cfg.eval.samples, self.plan.resolved.latent_shape
        source = self.plan.resolved.conditions(n)

        @torch.no_grad()
        def draw(indices: list[int]) -> Tensor:
            batch = batch_on_device(source.batch(indices), ctx.device)
            image_BCHW = ae.decode(predicted(model, batch, shape, ctx.device))
            return to_uint8(completed(model.conditioner, image_BCHW, batch)).cpu()

        sampling.sample_all(draw, n, folder, ctx.cfg.eval.batch_size, ctx.ranks, "regressed")
