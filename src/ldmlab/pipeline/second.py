"""Two models in a row (`then=<run of the store>`): the samples of this run through the super-resolution model of another, scored as one.

The paper upsamples samples of its class-conditional model so (docs/paper.md#two-models-in-a-row). The other run has a plan of its own,
whose first stage and denoiser these stages stand on; the evaluation is this command's, at the other run's size.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ldmlab import build
from ldmlab.conditioning.compose import parts_of
from ldmlab.conditioning.low_resolution import LowResolution, resized
from ldmlab.conditioning.source import POSITION, ConditionSource
from ldmlab.config.schema import RunConfig
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.errors import ConfigError
from ldmlab.metrics.beside import SHOWN, features_of, size
from ldmlab.metrics.evaluate import Scores, evaluate, with_set
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.protocol import ProtocolCard
from ldmlab.pipeline import large
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.resolved import Resolved, resolve
from ldmlab.pipeline.samples import SamplesStage
from ldmlab.pipeline.scores import ScoresStage
from ldmlab.pipeline.stage import Row, SnapshotStage, Stage
from ldmlab.pipeline.weak_model import find_run
from ldmlab.ranges import Given
from ldmlab.store.files import read_array, read_json

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

GIVEN = ("image", POSITION)  # fields of super-resolution that the first model's samples take the place of
OF_THE_COMMAND = ("metric", "runtime", "store", "dry_run", "verify", "tracking", "large")
BICUBIC = "bicubic"  # the row beside the scores: the first model's samples, enlarged so
OF_THE_OTHER = ("weights", "ema_width")  # of eval: which weights are sampled


def resolved_of(plan: "Plan") -> Resolved:
    """The run that `then` names, asked for samples of the final size.

    Raises ConfigError when there is no such run, or it enlarges nothing.
    """
    cfg = plan.resolved.cfg
    run = find_run(plan.store.root, str(cfg.then), "then")
    record, caches = read_json(run / "run.json"), plan.store.root / "data" / "cache"
    choices = record["choices"] | {"eval": plan.resolved.choices["eval"]}
    other = configured(cfg, record["config"])
    data, val = build.dataset(other, "train", caches), build.dataset(other, "val", caches)
    found = resolve(other, choices, data, val, caches, scored=False)
    size = [side * factor_of(found, plan.resolved) for side in plan.resolved.size]
    if size != [found.resolution] * 2:
        other.size = "x".join(map(str, size))
    OmegaConf.set_readonly(other, True)
    return replace(resolve(other, choices, data, val, caches, scored=False), metrics=plan.resolved.metrics)


def configured(cfg: DictConfig, recorded: Any) -> DictConfig:
    """The other run's configuration with this command's evaluation; options that are newer than its record have their defaults."""
    defaults = OmegaConf.to_container(OmegaConf.structured(RunConfig))
    other = cast(DictConfig, OmegaConf.create({**cast(dict[str, Any], defaults), **recorded}))
    own = {name: other.eval[name] for name in OF_THE_OTHER}
    for name in OF_THE_COMMAND:
        other[name] = cfg[name]
    other.eval = {**cast(dict[str, Any], OmegaConf.to_container(cfg.eval)), **own, "at": [1.0], "cooldown": None}
    other.eval.reference = cfg.eval.reference
    other.cond.label = other.cond.prompt = other.then = other.size = None
    other.until = "denoiser"
    return other


def factor_of(found: Resolved, first: Resolved) -> int:
    """How many times the other model enlarges. Raises ConfigError where it does not, or needs what the first samples do not have."""
    where = f"then={first.cfg.then}"
    enlarging = [part for part in parts_of(found.conditioner) if isinstance(part, LowResolution)]
    if not enlarging:
        raise ConfigError(f"{where} is no super-resolution model. Name a run with cond=superres.")
    missing = [name for name in found.condition_fields if name not in (*GIVEN, *first.condition_fields)]
    if missing:
        raise ConfigError(
            f"{where} conditions on {', '.join(missing)} too, which samples of this run are not drawn for."
        )
    return enlarging[0].factor


class Enlarged:
    """The condition of the second model: the first model's samples, and what these were drawn for.

    images_NHWC: uint8. first: the source of the first model's conditions.
    """

    def __init__(self, images_NHWC: np.ndarray, first: ConditionSource, of: str):
        self.images_NHWC, self.first, self.of = images_NHWC, first, of
        self.fields: tuple[str, ...] = ("small_image", POSITION, *first.fields)

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        small_BHWC = torch.from_numpy(np.asarray(self.images_NHWC[indices]))
        own = {"small_image": to_float(small_BHWC), POSITION: torch.tensor(indices)}
        return {**self.first.batch(indices), **own}

    def describe(self, i: int) -> str:
        return self.first.describe(i)

    def picture(self, i: int) -> np.ndarray | None:
        return np.asarray(self.images_NHWC[i])

    def record(self, n: int) -> dict[str, Any]:
        return {**self.first.record(n), "enlarged": self.of}


class OfTwo(SnapshotStage):
    """A stage of the second model that stands on samples of the first."""

    def __init__(
        self, plan: Annotated[Any, Given], images: Annotated[int, Given], first: Annotated[SamplesStage, Given]
    ):
        super().__init__(plan, images)
        self.first = first

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        if plan.resolved.cfg.then is None:
            return []
        return [plan.second.stage(cls, *which) for which in pairs_of(plan)]


class EnlargedSamples(OfTwo, SamplesStage):
    """What `SamplesStage` leaves, of the second model; conditions-pictures.npy are the first model's samples."""

    def check(self) -> None:
        """The second model is there: it is another run's to train."""
        if self.plan.store.done(self.plan.stage(DenoiserStage).address) is None:
            raise ConfigError(
                f"then={self.first.cfg.then}: that run has no finished denoiser, or one of an older version. Train it first."
            )

    def own(self) -> dict[str, Any]:
        own = {name: value for name, value in super().own().items() if name not in ("label_mode", "label")}
        return own | ({"seeds": "of the first"} if self._asked else {})

    def upstream(self) -> dict[str, Stage | str]:
        return {**super().upstream(), "enlarged": self.first}

    def row(self) -> Row:
        row = super().row()
        return replace(row, what=f"{row.what} · of the samples before")

    @property
    def _asked(self) -> bool:
        """Whether a person asked for the first model's samples, whose seeds then draw both."""
        return self.first.plan.resolved.request is not None

    def seeds(self) -> list[int]:
        return self.first.seeds() if self._asked else super().seeds()

    def _source(self) -> ConditionSource:
        images = read_array(self.plan.store.folder(self.first.address) / "images.npy")
        first = self.first.plan.resolved.conditions(self.cfg.eval.samples)
        return Enlarged(images, first, self.first.address.id)


class ScoresOfBoth(OfTwo, ScoresStage):
    """What `ScoresStage` leaves, of the second model's samples: against the reference at their size, for the first model's conditions.

    Each score also of the first model's samples enlarged bicubically, which the second model has to beat.
    """

    version: ClassVar[int] = 3

    @property
    def samples(self) -> SamplesStage:
        return self.plan.stage(EnlargedSamples, self.images, self.first)

    def check(self) -> None:
        for metric in self.plan.resolved.metrics:
            if "pairs" in metric.needs or any(need.startswith("stage:") for need in metric.needs):
                raise ConfigError(
                    f"eval.metrics: '{metric.name}' compares with other samples of one model, and then= makes two. Leave it out."
                )

    def evaluated(self, inputs: Inputs) -> Scores:
        small_NHWC = read_array(self.plan.store.folder(self.first.address) / "images.npy")
        found = self.plan.resolved

        def enlarged(rows: list[int]) -> Tensor:
            return to_uint8(resized(to_float(torch.from_numpy(np.asarray(small_NHWC[rows]))), found.size))

        def seen(rows: list[int]) -> Tensor:
            return large.of_training_size(found, enlarged(rows).numpy(), rows)

        trivial = replace(inputs, samples=features_of(inputs, seen, BICUBIC), read_samples=enlarged, shared={})
        both = with_set(super().evaluated(inputs), evaluate(found.metrics, trivial), BICUBIC, BICUBIC)
        shown = list(range(min(SHOWN, size(inputs))))
        assert inputs.read_samples is not None
        sets = {"samples": inputs.read_samples(shown).numpy(), BICUBIC: enlarged(shown).numpy()}
        return replace(both, pictures=both.pictures | sets)

    def _conditions(self) -> ConditionSource | None:
        first = self.first.plan.resolved
        return first.conditions(self.cfg.eval.samples) if first.condition_fields else None

    def card(self, extractor: Any, reference_images: int) -> ProtocolCard:
        """The second model's, and what the first one's says of its sampling."""
        before = ScoresStage(self.first.plan, self.first.images)
        own = before.card(extractor, reference_images)
        sampled = {
            name: getattr(own, name)
            for name in ("resolution", "size", "sampler", "steps", "eta", "weights", "guidance")
        }
        return replace(
            super().card(extractor, reference_images),
            label_mode=own.label_mode,
            first={"samples": self.first.address.id, **sampled},
        )


def pairs_of(plan: "Plan") -> list[tuple[int, SamplesStage]]:
    """(snapshot of the second run, samples of the first): the second's last, for each of the first's that is scored."""
    last = plan.second.resolved.snapshots[-1]
    return [(last, cast(SamplesStage, plan.stage(SamplesStage, images))) for images in plan.resolved.snapshots]
