"""What a command will do: the stages of one run, each after its upstream stages, with state and cost. Builds meta tensors only."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ldmlab import build
from ldmlab.diffusion.rescaled import Shifted
from ldmlab.diffusion.targets import Z0
from ldmlab.errors import ConfigError
from ldmlab.networks.dit import DiT
from ldmlab.pipeline.chain import ChainStage
from ldmlab.pipeline.cooldown import CooldownStage
from ldmlab.pipeline.costs import UTILISATION, machine_speed
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.decoder import DecoderStage
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.extractor import ExtractorStage
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.gaussian import GaussianStage
from ldmlab.pipeline.latents import LatentsStage
from ldmlab.pipeline.learning_rate import LearningRateStage
from ldmlab.pipeline.noise_basis import NoiseBasisStage
from ldmlab.pipeline.noisy_classifier import NoisyClassifierStage
from ldmlab.pipeline.null_samples import NullSamplesStage
from ldmlab.pipeline.reconstructions import ReconstructionsStage
from ldmlab.pipeline.reference import ReferenceStage
from ldmlab.pipeline.regression import RegressedStage, RegressionStage
from ldmlab.pipeline.resolved import Resolved
from ldmlab.pipeline.samples import SamplesStage
from ldmlab.pipeline.scores import ScoresStage
from ldmlab.pipeline.second import EnlargedSamples, ScoresOfBoth, resolved_of
from ldmlab.pipeline.segmenter import SegmenterStage
from ldmlab.pipeline.shuffled_samples import ShuffledSamplesStage
from ldmlab.pipeline.stage import Row, SnapshotStage, Stage
from ldmlab.pipeline.tokenizer import TokenizerStage
from ldmlab.pipeline.weak_model import WeakModel
from ldmlab.store.checkpoint import Checkpoints
from ldmlab.store.store import Address, Store
from ldmlab.terminal import clock

KINDS: tuple[type[Stage], ...] = (
    DataStage, TokenizerStage, ExtractorStage, FirstStage, DecoderStage, ReconstructionsStage, LatentsStage, LearningRateStage,
    DenoiserStage, CooldownStage, GaussianStage, NoisyClassifierStage, WeakModel, NoiseBasisStage, SamplesStage, ReferenceStage,
    ChainStage, SegmenterStage, NullSamplesStage, ShuffledSamplesStage, RegressionStage, RegressedStage, EnlargedSamples, ScoresStage,
    ScoresOfBoth,
)  # fmt: skip
"""The stages of the package. Where two could come first, the earlier here does; order is otherwise by what each stands on."""

UNTIL = ("autoencoder", "latents", "denoiser", "samples", "scores", "report")

S = TypeVar("S", bound=Stage)


def nothing_shifted(resolved: Resolved) -> str | None:
    """A shifted schedule that leaves this latent as it is: the run would only repeat the one without it."""
    schedule, own = resolved.objective.schedule, resolved.cfg.objective.schedule
    if not isinstance(schedule, Shifted) or schedule.factor != 1 or own.base_size is None:
        return None
    return f"objective.schedule.base_size={own.base_size} is this latent's own size, so nothing is shifted"


def narrow_tokens(resolved: Resolved) -> str | None:
    """A transformer whose tokens hold more numbers than it has features, and a target that holds noise, which fills all of them."""
    network = resolved.denoiser.network
    if not isinstance(network, DiT) or network.values <= network.width or isinstance(resolved.objective.target, Z0):
        return None
    return (
        f"a token holds {network.values} numbers and the network has ldm.network.width={network.width} features, through which noise in "
        f"all of them cannot pass: use a width of {network.values} or more, a smaller ldm.network.patch, or a target without noise "
        "(objective=z0_…)"
    )


class Plan:
    """The stages of a run, each made once, and what the user should read with them (`notes`)."""

    def __init__(self, resolved: Resolved, store: Store):
        self.resolved, self.store = resolved, store
        self.notes: list[str] = list(resolved.notes)
        self._made: dict[tuple[Any, ...], Stage] = {}
        self.order: list[Stage] = in_order(self._wanted())
        for stage in self.order:
            stage.check()
        if note := self._extractor_note():
            self.notes.append(note)
        self.notes += filter(None, (nothing_shifted(resolved), narrow_tokens(resolved)))
        self.notes += [
            why for stage in self.order if not begun(stage) and stage.continuation for why in stage.continuation.refused
        ]
        self.rows: list[tuple[Stage, Row]] = [(stage, stage.row()) for stage in self.order if stage.listed]

    def stage(self, kind: type[S], *which: Any) -> S:
        """The run's stage of a kind; `which` tells several apart (the snapshot of samples)."""
        made = self._made.setdefault((kind, *which), kind(self, *which))
        assert isinstance(made, kind)
        return made

    @functools.cached_property
    def second(self) -> "Plan":
        """Of the run that `then` names."""
        return Plan(resolved_of(self), self.store)

    def named(self, name: str, images: int | None = None) -> Stage:
        """The run's one stage of this name, of several the last, or that of the snapshot at `images`; ConfigError when there is none."""
        found = [stage for kind in KINDS if kind.name == name for stage in kind.of(self)]
        found += [stage for stage in self._extra() if stage.name == name]
        if not found:
            raise ConfigError(f"a part of this run needs the stage '{name}', which this composition does not have.")
        own = [stage for stage in found if isinstance(stage, SnapshotStage) and stage.images == images]
        return (own or found)[-1]

    def has(self, name: str) -> bool:
        return any(stage.name == name for stage in self.order)

    def address(self, name: str) -> Address:
        """Of the last stage of this name (samples and scores: of the last snapshot)."""
        return [stage for stage in self.order if stage.name == name][-1].address

    @property
    def ends(self) -> list[Stage]:
        """Stages on which no other stands."""
        below = {id(on) for stage in self.order for on in stage.upstream().values() if isinstance(on, Stage)}
        return [stage for stage in self.order if id(stage) not in below]

    @property
    def run(self) -> Address:
        """Of the run's own folder: a function of its ends."""
        choices = self.resolved.choices
        name = "-".join(choices[group] for group in ("data", "ae", "ldm", "cond"))
        return Address("runs", name, 2, {}, {f"{s.name}{i}": s.address.id for i, s in enumerate(self.ends)})

    def _extractor_note(self) -> str | None:
        """What an extractor costs where it serves the first stage's rFID alone."""
        trained = self.resolved.cfg.eval.extractor_fit is not None and not build.needs_classifier(self.resolved.cfg)
        extractor = next((stage for stage in self.order if stage.name == ExtractorStage.name), None)
        if not trained or extractor is None or self.resolved.cfg.until not in UNTIL[:4]:
            return None
        others = [stage.name for stage in self.order if extractor in stage.upstream().values()]
        if self.store.done(extractor.address) is not None or set(others) - {"reconstructions", "reference"}:
            return None
        return "the extractor is trained for rFID and R-IS of reconstructions alone; eval=none leaves both out"

    def _wanted(self) -> Iterator[Stage]:
        until = UNTIL.index(self.resolved.cfg.until)
        for kind in KINDS:
            if kind.due is None or UNTIL.index(kind.due) > until:
                continue
            if kind.due == UNTIL[until] or not kind.only_as_end:
                yield from kind.of(self)
        for stage in self._extra():
            if UNTIL.index(stage.due or "report") <= until:
                yield stage

    def _extra(self) -> list[Stage]:
        """Stages from outside the package: `stage=…`."""
        made = []
        for name, node in (self.resolved.cfg.stage or {}).items():
            key = ("outside", name)
            if key not in self._made:
                self._made[key] = build.part(node, plan=self)
            made.append(self._made[key])
        return made


def in_order(wanted: Iterable[Stage]) -> list[Stage]:
    """The wanted stages and all they stand on, each after its upstream; ConfigError for a circle."""
    done: dict[int, Stage] = {}
    open_: list[Stage] = []

    def visit(stage: Stage) -> None:
        if id(stage) in done:
            return
        if stage in open_:
            raise ConfigError(
                f"stages depend on each other in a circle: {' → '.join(s.name for s in [*open_, stage])}."
            )
        open_.append(stage)
        for on in stage.upstream().values():
            if isinstance(on, Stage):
                visit(on)
        open_.pop()
        done[id(stage)] = stage

    for stage in wanted:
        visit(stage)
    return list(done.values())


def begun(stage: Stage) -> bool:
    """Whether the store has its result, or a checkpoint on the way to it."""
    store = stage.plan.store
    return store.done(stage.address) is not None or Checkpoints(store.folder(stage.address)).last() is not None


def state_of(stage: Stage, row: Row, store: Store) -> str:
    """done, resumes at n %, continues another training, or will run."""
    if stage.name == "data":
        return "ready"
    if store.done(stage.address) is not None:
        return "done"
    folder = store.folder(stage.address)
    if last := Checkpoints(folder).last():
        return f"resumes at {int(last.name) / max(row.images, 1):.0%}"
    if stage.continuation and stage.continuation.start:
        return stage.continuation.words
    if parts := list(folder.glob("part-*.npy")) + list(folder.glob("moments-*.npy")):
        return f"resumes ({len(parts)} parts)"
    return "will run"


def table(plan: Plan, costs: bool) -> list[list[str]]:
    """Rows of text: stage, id, state, what, cost (cost only where the caller wants it: it times this machine)."""
    speed = machine_speed() * UTILISATION if costs else 0.0
    lines = [["stage", "id", "state", "what", "cost"] if costs else ["stage", "id", "state", "what"]]
    for stage, row in plan.rows:
        state = state_of(stage, row, plan.store)
        line = [stage.name, stage.address.id, state, row.what]
        if costs:
            parts = []
            if state not in ("done", "ready") and row.flops:
                found = stage.continuation.start if state.startswith("continues") and stage.continuation else None
                parts.append(f"about {clock((row.images - (found.images if found else 0)) * row.flops / speed)}")
            if row.megabytes >= 0.1:
                parts.append(f"{row.megabytes:.3g} MB" if row.megabytes < 1000 else f"{row.megabytes / 1000:.3g} GB")
            line.append(" · ".join(parts))
        lines.append(line)
    return lines
