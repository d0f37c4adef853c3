"""A snapshot of the denoiser, cooled down: a branch off the training on which the learning rate falls to 0 (`eval.cooldown`).

The training itself goes on beside it, untouched. The branch is, bit for bit, the end of a training that is longer by the cool-down
and has it for its `ldm.fit.cooldown`. So its id names that training, and not the one that it branches off.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig

from ldmlab import build
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import ConfigError, DataError
from ldmlab.pipeline import snapshots
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.continuation import LENGTH
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.denoiser import DenoiserStage, load_denoiser, train_denoiser
from ldmlab.pipeline.gaussian import denoiser_of
from ldmlab.pipeline.stage import Row, SnapshotStage, Stage, plain
from ldmlab.terminal import number
from ldmlab.training.kept import STATE, Start, snapshot_folder
from ldmlab.training.loop import images_at

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


class CooldownStage(SnapshotStage):
    """weights.safetensors and ema.safetensors of one snapshot after its cool-down, the log of the cool-down."""

    name: ClassVar[str] = "cooldown"
    due: ClassVar[str | None] = "denoiser"

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return super().of(plan) if plan.resolved.cfg.eval.cooldown is not None else []

    @property
    def trunk(self) -> DenoiserStage:
        """The training that it branches off."""
        return self.plan.stage(DenoiserStage)

    @property
    def label(self) -> str:
        return self.trunk.label

    @property
    def trains(self) -> bool:
        return True

    @property
    def span(self) -> int:
        """Images of the cool-down itself."""
        return snapshots.cooled(self.cfg, self.images)

    @property
    def fit(self) -> DictConfig:
        """The budget of the training that has this branch for its end."""
        fit = build.editable(self.cfg.ldm.fit)
        fit.images, fit.cooldown, fit.snapshots = self.images + self.span, self.span, []
        return fit

    @property
    def place(self) -> Path:
        """What the training kept after `images`."""
        folder = self.plan.store.folder(self.trunk.address)
        return folder if self.images == images_at(self.cfg.ldm.fit, 1.0) else snapshot_folder(folder, self.images)

    def own(self) -> dict[str, Any]:
        """That training's options: the branch is another one's too, however far the training beside it goes."""
        options = self.trunk.own()
        options["ldm"]["fit"] |= {name: plain(self.fit[name]) for name in LENGTH}
        options["ldm"].pop("power_ema")
        return options

    def upstream(self) -> dict[str, Stage | str]:
        return self.trunk.upstream()

    def check(self) -> None:
        """The training keeps, or has kept, the optimiser's state there."""
        if self.plan.store.done(self.address) is not None:
            return
        done = self.plan.store.done(self.trunk.address) is not None
        if done and not (self.place / STATE).is_file():
            raise ConfigError(
                f"eval.cooldown goes on from the optimiser's state after {self.images} images, and "
                f"{self.plan.store.folder(self.trunk.address)} was trained without keeping it. Use eval.cooldown=null, or remove "
                "that folder and train again with ldm.fit.keep_state=true."
            )
        if not done and not self.cfg.ldm.fit.keep_state:
            raise ConfigError(
                "eval.cooldown goes on from the optimiser's state, and ldm.fit.keep_state=false keeps none. "
                "Use ldm.fit.keep_state=true, or eval.cooldown=null."
            )

    def row(self) -> Row:
        what, trunk = f"from {number(self.images)} img over {number(self.span)}", self.trunk.row()
        copies = 1 + (self.cfg.ldm.fit.ema is not None)
        return Row(what, self.span, trunk.flops, 4 * copies * parameters_of(self.plan.resolved.denoiser) / 1e6)

    def work(self, ctx: Context, folder: Path) -> float:
        trunk = self.trunk.make(ctx)
        if altered := ctx.store.alterations(trunk):
            raise DataError(
                f"{trunk / next(iter(altered))} was altered, and a cool-down goes on from it. Restore the file, or remove {trunk} "
                "and run the same command."
            )
        start = Start(self.place, self.images, origin={"id": self.trunk.address.id, "images": self.images})
        return train_denoiser(self, ctx, folder, self.trunk.tuned(ctx, self.fit), start).seconds

    def load(self, ctx: Context) -> Denoiser:
        """With the weights that `eval.weights` names."""
        return load_denoiser(self.plan, ctx, self.make(ctx))


def scored(plan: "Plan", images: int) -> "DenoiserStage | CooldownStage":
    """The stage whose weights are sampled for the snapshot after `images`."""
    return plan.stage(CooldownStage, images) if CooldownStage.of(plan) else denoiser_of(plan)


def load_scored(plan: "Plan", ctx: Context, images: int) -> Denoiser:
    """The denoiser that is sampled for the snapshot after `images`."""
    stage = scored(plan, images)
    return stage.load(ctx, images) if isinstance(stage, DenoiserStage) else stage.load(ctx)


def images_behind(plan: "Plan", images: int) -> int:
    """Training images behind the weights that are sampled for the snapshot after `images`, its cool-down's included."""
    return images + (plan.stage(CooldownStage, images).span if CooldownStage.of(plan) else 0)
