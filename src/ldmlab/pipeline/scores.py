"""FID and the other metrics of one set of samples, with intervals and the protocol card."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ldmlab import build
from ldmlab.conditioning.source import ConditionSource, HeldOut
from ldmlab.metrics.beside import SETS
from ldmlab.metrics.evaluate import Scores, evaluate
from ldmlab.metrics.extraction import extract_all
from ldmlab.metrics.features import FeatureSet, extract
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.protocol import ProtocolCard
from ldmlab.pipeline import large
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.cooldown import images_behind
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.reference import ReferenceStage
from ldmlab.pipeline.samples import SamplesStage
from ldmlab.pipeline.snapshots import said
from ldmlab.pipeline.stage import Row, SnapshotStage, Stage, plain
from ldmlab.store.files import atomic, read_array, write_json


class ScoresStage(SnapshotStage):
    """scores.json: each metric with its interval, the protocol card, what a reader must know; features.npz; sets.npz."""

    name: ClassVar[str] = "scores"
    version: ClassVar[int] = 2
    due: ClassVar[str | None] = "scores"

    @classmethod
    def of(cls, plan: Any) -> list[Stage]:
        """None where the samples go through another model first, and are scored behind it (pipeline.second)."""
        return super().of(plan) if plan.resolved.cfg.then is None else []

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["eval"]

    @property
    def samples(self) -> SamplesStage:
        return self.plan.stage(SamplesStage, self.images)

    def own(self) -> dict[str, Any]:
        metrics = plain(self.cfg.metric)
        for metric in self.plan.resolved.metrics:
            metrics[metric.name] |= getattr(metric, "files", {})  # what a file holds decides a score, not where it lies
        return {"metrics": metrics, "bootstrap": self.cfg.eval.bootstrap}

    def upstream(self) -> dict[str, Stage | str]:
        reference = self.plan.stage(ReferenceStage)
        return {
            "samples": self.samples, "reference": reference, "extractor": extractor_of(self.plan), **self._needed(),
        }  # fmt: skip

    def _needed(self) -> dict[str, Stage]:
        """The stages whose results metrics ask for, by name; of those that each snapshot has, this snapshot's."""
        needs = [need.partition(":") for metric in self.plan.resolved.metrics for need in metric.needs]
        return {name: self.plan.named(name, self.images) for kind, _, name in needs if kind == "stage"}

    def row(self) -> Row:
        return Row(" · ".join(metric.label for metric in self.plan.resolved.metrics), self.cfg.eval.samples)

    def work(self, ctx: Context, folder: Path) -> None:
        cfg, extractor = ctx.cfg, load_extractor(self.plan, ctx)
        reference, samples = self.plan.stage(ReferenceStage).load(ctx), self.samples.make(ctx)
        stages = {name: stage.make(ctx) for name, stage in self._needed().items()}  # on all ranks
        images, resolved = read_array(samples / "images.npy"), self.plan.resolved
        found = extract_all(
            lambda rows: large.of_training_size(resolved, images[rows], rows), len(images), extractor, folder, cfg.eval.batch_size,
            ctx.device, ctx.ranks, "features", "scores",
        )  # fmt: skip
        if ctx.main:
            scores = self.evaluated(self._inputs(ctx, found, reference, images, stages, extractor))
            card = self.card(extractor, len(reference))
            result = {"snapshot_images": images_behind(self.plan, self.images) or None, **scores.to_dict()}
            result["warnings"] = [*scores.warnings, *card.warnings()]
            if scores.pictures:
                with atomic(folder / SETS) as beside, beside.open("wb") as file:
                    np.savez(file, allow_pickle=False, **scores.pictures)
            write_json(folder / "scores.json", {**result, "card": card.to_dict(), "card_short": card.short()})
        ctx.barrier()

    def evaluated(self, inputs: Inputs) -> Scores:
        """Every metric of the run."""
        return evaluate(self.plan.resolved.metrics, inputs)

    def _inputs(
        self,
        ctx: Context,
        found: FeatureSet,
        reference: FeatureSet,
        images: np.ndarray,
        stages: dict[str, Path],
        extractor: Any,
    ) -> Inputs:
        """What the metrics are given."""
        cfg, resolved = ctx.cfg, self.plan.resolved
        real = self.plan.stage(ReferenceStage).images(ctx)
        source = self._conditions()
        distance = build.evaluation_distance(cfg, extractor)

        def drawn(rows: list[int]) -> Tensor:
            return torch.from_numpy(np.asarray(images[rows]))

        def pairs(rows: list[int]) -> tuple[Tensor, Tensor]:
            assert isinstance(source, HeldOut)
            return drawn(rows), source.images(rows)

        return Inputs(
            cfg.eval.bootstrap, cfg.eval.seed, found, reference,
            read_samples=drawn, read_reference=real, pairs=pairs if isinstance(source, HeldOut) else None, conditions=source,
            class_names=tuple(ctx.data.class_names), classes_of_data=extractor.classes_of_data,
            stages=stages, conditioner=resolved.conditioner, device=ctx.device,
            features_of=lambda batches: extract((b.permute(0, 3, 1, 2) for b in batches), extractor, ctx.device),
            distance=None if distance is None else frozen(distance, ctx.device), answers=getattr(extractor, "answers", None),
        )  # fmt: skip

    def _conditions(self) -> ConditionSource | None:
        """What the samples were drawn for."""
        resolved = self.plan.resolved
        return resolved.conditions(self.cfg.eval.samples) if resolved.condition_fields else None

    def card(self, extractor: Any, reference_images: int) -> ProtocolCard:
        """Everything that decides a score beside the trained network."""
        cfg, resolved = self.cfg, self.plan.resolved
        labelled = "label" in resolved.condition_fields
        mode = (f"label {cfg.cond.label}" if cfg.cond.label is not None else cfg.eval.label_mode) if labelled else None
        mode = mode if cfg.cond.prompt is None else f"prompt {cfg.cond.prompt!r}"
        return ProtocolCard(
            reference=self.plan.stage(ReferenceStage).address.id, reference_split=cfg.eval.reference.split,
            reference_images=reference_images, resolution=resolved.resolution, samples=cfg.eval.samples, label_mode=mode,
            snapshot_images=images_behind(self.plan, self.images) or None, extractor=extractor.name,
            extractor_hash=extractor.fingerprint(), resize=extractor.resize_text, seed=cfg.eval.seed,
            noise=None if cfg.eval.noise == "latent" else cfg.eval.noise, sampler=self.samples.label, **self._steps(),
            size=large.words(resolved) or None,
        )  # fmt: skip

    def _steps(self) -> dict[str, Any]:
        """What the card says of the sampler and its weights; of a denoiser that draws in closed form none of it applies."""
        if self.samples.closed_form:
            return {"steps": None, "eta": None, "weights": None}
        cfg, sampler, evaluations = self.cfg, self.plan.resolved.sampler, self.samples.evaluations
        weights = cfg.eval.weights if cfg.eval.ema_width is None else f"ema width {cfg.eval.ema_width:g}"
        weights += "" if cfg.eval.cooldown is None else f" cooled down {said([cfg.eval.cooldown])[0]}"
        return {
            "steps": sampler.steps, "eta": getattr(sampler, "eta", None), "weights": weights,
            "grid": getattr(sampler, "grid", None), "evaluations": evaluations if evaluations != sampler.steps else None,
            "sampler_options": _other_options(cfg), "guidance": self._guidance(),
            "precision": None if cfg.eval.precision == "fp32" else cfg.eval.precision,
        }  # fmt: skip

    def _guidance(self) -> dict[str, dict[str, Any]]:
        """Kind → its entry on the card, with the stages that it follows; and the sampler's churn, where there is any."""
        churn = _churn(self.cfg)
        found: dict[str, dict[str, Any]] = {} if churn is None else {"churn": churn}
        kinds = self.plan.resolved.guidance
        for kind in sorted(kinds, key=lambda kind: kind.name != "classifier_free"):  # first, as the sampler says it
            if own := kind.card():
                for role, name in kind.stages.items():
                    own = own | self.plan.named(name).on_card(role)
                found[kind.name] = own
        return found


ON_CARD = ("_target_", "_partial_", "steps", "eta", "grid", "guidance", "guidance_interval", "guidance_rescale")


def _other_options(cfg: Any) -> dict[str, Any]:
    """The sampler's own options beside those that every card names and its churn."""
    own = {str(k): v for k, v in plain(cfg.sampler).items() if k not in ON_CARD}
    return {k: v for k, v in own.items() if not k.startswith("s_")}


def _churn(cfg: Any) -> dict[str, float] | None:
    """The options of Heun's churn where there is any."""
    known = {k: v for k, v in cfg.sampler.items() if str(k).startswith("s_")}
    return known if known and known["s_churn"] > 0 else None
