"""The weaker model of autoguidance: this denoiser's earlier snapshot, or the finished denoiser of another run of the store."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from ldmlab import build
from ldmlab.errors import ConfigError
from ldmlab.guidance.base import Model
from ldmlab.pipeline import weights_denoiser
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.resolved import forward_flops
from ldmlab.pipeline.snapshots import kept, said, scored
from ldmlab.pipeline.stage import Stage
from ldmlab.pipeline.tokenizer import trained_tokenizer
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import read_json
from ldmlab.terminal import number
from ldmlab.training.kept import snapshot_folder
from ldmlab.training.loop import images_at

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


@dataclass(frozen=True)
class OtherRun:
    """A denoiser of another run: its configuration, its address, the folder of its weights, the images they have seen."""

    cfg: DictConfig
    name: str
    id: str
    folder: Path
    images: int


class WeakModel(Stage):
    """No result of its own: it reads a finished denoiser."""

    name: ClassVar[str] = "weak_model"
    listed: ClassVar[bool] = False

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [plan.stage(cls)] if plan.resolved.cfg.guidance.auto is not None else []

    @functools.cached_property
    def other(self) -> OtherRun | None:
        """None: a snapshot of this run's own denoiser."""
        if self.cfg.guidance.auto.run is None:
            check_snapshot(self.cfg)
            return None
        return other_run(self.plan)

    @property
    def images(self) -> int:
        return self.other.images if self.other else images_at(self.cfg.ldm.fit, self.cfg.guidance.auto.snapshot)

    def own(self) -> dict[str, Any]:
        return {"images": self.images}

    def upstream(self) -> dict[str, Stage | str]:
        return {"denoiser": self.other.id if self.other else self.plan.stage(DenoiserStage)}

    def on_card(self, role: str) -> dict[str, Any]:
        return {role: self.other.id if self.other else "own snapshot", "images": self.images}

    def words(self) -> str:
        auto = self.cfg.guidance.auto
        name = f"{self.other.name}-{self.other.id[:4]}" if self.other else f"snapshot {said([auto.snapshot])[0]}"
        return f"{name}, {number(self.images)} img" if self.images else name

    def forward_flops(self) -> float:
        if not self.cfg.dry_run:
            return 0.0
        resolved = self.plan.resolved
        if self.other is None:
            return resolved.costs.forward
        with build.shapes_only():
            model = build.denoiser(self.other.cfg, resolved.autoencoder, resolved.data)
        return forward_flops(model, resolved.latent_shape)

    def make(self, ctx: Context) -> Path:
        if self.other is None:
            return self.plan.stage(DenoiserStage).make(ctx)
        inside = self.other.folder.parent.name == "snapshots"
        ctx.store.finished(self.other.folder.parents[1] if inside else self.other.folder)  # raises for an altered file
        return self.other.folder

    def load(self, ctx: Context) -> Model:
        if self.other is None:
            return Model(self.plan.stage(DenoiserStage).load(ctx, self.images), self.plan.resolved.objective)
        resolved, cfg = self.plan.resolved, self.other.cfg
        ae, tokenizer = self.plan.stage(FirstStage).load(ctx), trained_tokenizer(self.plan, ctx)
        model = build.denoiser(cfg, ae, ctx.data, tokenizer=tokenizer)
        name = "ema" if ctx.cfg.eval.weights == "ema" else "weights"
        weights_denoiser.load_into(model, load_tensors(self.make(ctx) / f"{name}.safetensors"))
        objective = build.objective(cfg, resolved.latent_shape[1])
        return Model(frozen(model, ctx.device), objective)  # type: ignore[arg-type]


def check_snapshot(cfg: DictConfig) -> None:
    """There is an earlier snapshot of this denoiser. Raises ConfigError."""
    auto = cfg.guidance.auto
    if cfg.ldm.fit is None:
        raise ConfigError(
            "guidance=autoguidance: ldm.weights is one state of a denoiser, and no earlier one is there to move away from. "
            "Name another run of the store: guidance.auto.run=<its name or id>."
        )
    if auto.snapshot is None:
        raise ConfigError(
            "guidance=autoguidance needs a weaker model: guidance.auto.snapshot=<a fraction or count of ldm.fit.snapshots>, "
            "or guidance.auto.run=<name or id of a finished run>."
        )
    found, given = kept(cfg.ldm.fit), f"guidance.auto.snapshot={said([auto.snapshot])[0]}"
    images, first = images_at(cfg.ldm.fit, auto.snapshot), min(scored(cfg))
    if images not in found:
        raise ConfigError(
            f"{given} is not among ldm.fit.snapshots={said(found.values())}: no weights are kept there. "
            f"Use one of them that is below eval.at={said(cfg.eval.at)}."
        )
    if images >= first:
        earlier = said(moment for at, moment in found.items() if at < first)
        raise ConfigError(
            f"{given} must be below eval.at={said(cfg.eval.at)}: the weak model is an earlier one. "
            f"Use an earlier one: {earlier or 'none is kept; add it to ldm.fit.snapshots'}."
        )


def other_run(plan: "Plan") -> OtherRun:
    """The finished denoiser that `guidance.auto.run` names.

    Raises ConfigError when that run does not exist, is not finished, or was trained on other latents or to answer otherwise.
    """
    cfg, denoiser = plan.resolved.cfg, plan.stage(DenoiserStage).address
    auto = cfg.guidance.auto
    where = f"guidance.auto.run={auto.run}"
    run = find_run(plan.store.root, str(auto.run))
    record = read_json(run / "run.json")
    stage = next((s for s in record["stages"] if s["stage"] == "denoiser"), None)
    if stage is None or not (run / stage["folder"] / "done.json").is_file():
        raise ConfigError(f"{where}: {run.name} has no finished denoiser. Finish it: {record['command']}")
    if stage["upstream"] != denoiser.upstream:
        raise ConfigError(
            f"{where}: its denoiser was trained on {_named(stage['upstream'])}, this one on {_named(denoiser.upstream)}. "
            "Both must share first stage and data; choose a run with the same ae= and data=."
        )
    other = OmegaConf.create(record["config"])
    assert isinstance(other, DictConfig)
    check_other(plan, other, where)
    moment = 1.0 if auto.snapshot is None else auto.snapshot
    fit = other.ldm.fit  # null for an imported denoiser, which is one state
    found = {0: 1.0} if fit is None else kept(fit)
    at = images_at(fit, moment) if fit is not None else 0 if moment == 1 else None
    if at not in found:
        raise ConfigError(
            f"guidance.auto.snapshot={said([moment])[0]}: that run keeps weights at {said(found.values())}. Use one of them."
        )
    if stage["id"] == denoiser.id and at >= min(scored(cfg)):
        raise ConfigError(
            f"{where} is this denoiser itself, which cannot guide itself. Choose another run, or one of its earlier snapshots: "
            "guidance.auto.snapshot=… below eval.at, and no guidance.auto.run."
        )
    folder = (run / stage["folder"]).resolve()
    folder = folder if at == max(found) else snapshot_folder(folder, at)
    if cfg.eval.weights == "ema" and not (folder / "ema.safetensors").is_file():
        raise ConfigError(f"{where} keeps no averaged weights. Use eval.weights=raw, or another run.")
    known = plan.store.upstream_id((run / stage["folder"]).resolve())  # with verify=false, of altered files too
    return OtherRun(other, stage["name"], known, folder, at)


def check_other(plan: "Plan", other: DictConfig, where: str) -> None:
    """The other denoiser answers the same question: same noise levels, same kind of condition."""
    cfg = plan.resolved.cfg
    if build.closed_form(other):
        raise ConfigError(
            f"{where} is a Gaussian in closed form, which guides nothing. Choose a run with a trained denoiser."
        )
    mine, theirs = (OmegaConf.to_container(c.objective.schedule, resolve=True) for c in (cfg, other))
    if mine != theirs:
        raise ConfigError(
            f"{where} has another objective.schedule: its times are other noise levels. Choose a run with the same one."
        )
    own_kinds, other_kinds = (" and ".join(build.kinds_of_condition(c)) for c in (cfg, other))
    if own_kinds != other_kinds:
        raise ConfigError(
            f"{where} was trained with another condition ({other_kinds}) than this run ({own_kinds}). Choose a run with the same "
            "cond=."
        )
    if cfg.sampler.guidance != 1 and plan.resolved.conditioner.needs and other.cond.drop == 0:
        raise ConfigError(
            f"{where} was trained with cond.drop=0 and knows no null condition, which sampler.guidance={cfg.sampler.guidance} "
            "asks of both models. Use sampler.guidance=1, or another run."
        )


def find_run(store_root: Path, wanted: str, option: str = "guidance.auto.run") -> Path:
    """The folder of a run by its name, its id, or both. Raises ConfigError, naming the option, unless there is exactly one."""
    runs = sorted(p.parent for p in (store_root / "runs").glob("*/run.json"))
    found = [
        p
        for p in runs
        if wanted in (p.name, *(part for part in (p.name.rpartition("-")[0], p.name.rpartition("-")[2])))
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(p.name for p in (found or runs)[:8]) or "none yet"
    what = f"is {len(found)} runs; give the id" if found else "is no run of this store"
    raise ConfigError(f"{option}={wanted} {what}. There are: {listed}.")


def _named(ids: dict[str, str]) -> str:
    return " and ".join(f"{stage} {id_}" for stage, id_ in ids.items())
