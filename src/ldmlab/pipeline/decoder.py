"""Another decoder for the same latents: `ae.train=decoder`. Latents and denoisers stay unchanged."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.first_stage import FirstStage, classifier_of, load_autoencoder, train_autoencoder
from ldmlab.pipeline.stage import Row, Stage, trained
from ldmlab.store.checkpoint import load_tensors, save_tensors
from ldmlab.store.files import atomic
from ldmlab.store.store import Address
from ldmlab.training.loop import total_steps

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


def decoding(plan: "Plan") -> dict[str, "FirstStage | DecoderStage"]:
    """Role → the stage that images are decoded with."""
    stage = plan.stage(DecoderStage) if DecoderStage.of(plan) else plan.stage(FirstStage)
    return {stage.name: stage}


def decoding_address(plan: "Plan") -> Address:
    """Of the stage that images are decoded with."""
    (stage,) = decoding(plan).values()
    return stage.address


def load_decoding(plan: "Plan", ctx: Context) -> Autoencoder:
    """The first stage as images are decoded with it."""
    (stage,) = decoding(plan).values()
    return stage.load(ctx)


class DecoderStage(Stage):
    """autoencoder.safetensors: the first stage's own encoder and scale, and a decoder that learnt on."""

    name: ClassVar[str] = "decoder"
    version: ClassVar[int] = 3
    due: ClassVar[str | None] = "autoencoder"

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [plan.stage(cls)] if plan.resolved.cfg.ae.train == "decoder" else []

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["ae"]

    @property
    def trains(self) -> bool:
        return True

    def own(self) -> dict[str, Any]:
        return {"fit": trained(self.cfg.ae.decoder_fit), "loss": self.cfg.ae.loss, "seed": self.cfg.ae.seed}

    def upstream(self) -> dict[str, Stage | str]:
        on: dict[str, Stage | str] = {"autoencoder": self.plan.stage(FirstStage), "data": self.plan.stage(DataStage)}
        return on | classifier_of(self.plan)

    def row(self) -> Row:
        fit, costs = self.cfg.ae.decoder_fit, self.plan.resolved.costs
        return Row("decoder alone, latents frozen", total_steps(fit) * fit.batch_size, costs.encode + 3 * costs.decode)

    def work(self, ctx: Context, folder: Path) -> float:
        ae, budget = build.autoencoder(ctx.cfg), ctx.cfg.ae.decoder_fit
        ae.load_state_dict(self.plan.stage(FirstStage).load(ctx).state_dict())
        ae.freeze_latents()
        done = train_autoencoder(self, ctx, folder, ae, budget)
        if ctx.main:
            kept = load_tensors(folder / f"{'weights' if budget.ema is None else 'ema'}.safetensors")
            with atomic(folder / "autoencoder.safetensors") as beside:
                save_tensors(beside, kept)
        return done.seconds

    def load(self, ctx: Context) -> Autoencoder:
        return load_autoencoder(ctx, self.make(ctx))
