"""The feature extractor of the scores: from a file, or a classifier that is trained here."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from ldmlab import build
from ldmlab.data.base import ImageDataset
from ldmlab.metrics.classifier import Classifier
from ldmlab.metrics.examination import examine, in_words
from ldmlab.metrics.extraction import Original
from ldmlab.metrics.features import Extractor, extract
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.costs import flops_of, millions, parameters_of
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.sheets import spread
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors, save_tensors
from ldmlab.store.files import write_json
from ldmlab.training.classifier_loss import ClassifierLoss
from ldmlab.training.loop import total_steps

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

FEATURES = "features.safetensors"
FEATURE_IMAGES = 5000  # training images behind the mean and deviation of each feature
AT_ONCE = 250


def extractor_of(plan: "Plan") -> Stage | str:
    """What scores stand on: the trained extractor's stage, or the content id of one that comes from a file."""
    if plan.resolved.cfg.eval.extractor_fit is not None:
        return plan.stage(ExtractorStage)
    extractor = plan.resolved.extractor
    return "none" if extractor is None else cast(Extractor, extractor).fingerprint()[:12]


def load_extractor(plan: "Plan", ctx: Context) -> Any:
    """The extractor on the device, trained first when it is of the kind that is trained here; None with eval=none."""
    if plan.resolved.cfg.eval.extractor_fit is not None:
        return plan.stage(ExtractorStage).load(ctx)
    extractor = build.extractor(ctx.cfg, plan.resolved.data.declared)
    return None if extractor is None else frozen(extractor, ctx.device)


def _forward_flops(net: nn.Module, size: int) -> float:
    """Of one image, counted on the meta device: an image of 4096x4096 would take a minute."""
    shapes = copy.deepcopy(net).to("meta")
    channels = int(getattr(net, "image_channels", 3))
    return flops_of(lambda: shapes(torch.zeros(1, channels, size, size, device="meta")))


class ExtractorStage(Stage):
    """weights.safetensors and ema.safetensors of the classifier, features.safetensors with the mean and deviation of its features
    over training images, scores.json with what it knows of val images."""

    name: ClassVar[str] = "extractor"
    version: ClassVar[int] = 4
    due: ClassVar[str | None] = "autoencoder"

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [plan.stage(cls)] if plan.resolved.cfg.eval.extractor_fit is not None else []

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["eval"]

    def own(self) -> dict[str, Any]:
        return {"extractor": self.cfg.eval.extractor, "fit": self.cfg.eval.extractor_fit}

    def upstream(self) -> dict[str, Stage | str]:
        own = self.cfg.eval.extractor.trained_on == "data"
        return {"data": self.plan.stage(DataStage) if own else self._data("train").fingerprint()}

    def row(self) -> Row:
        fit, size = self.cfg.eval.extractor_fit, self.plan.resolved.resolution
        net = cast(Classifier, self.plan.resolved.extractor)
        per_image = 3 * _forward_flops(net, size) if self.cfg.dry_run else 0.0
        learns = ", ".join([*net.values, "changes"])
        what = f"{self.label} classifier {millions(parameters_of(net))} · {learns}"
        return Row(what, total_steps(fit) * fit.batch_size, per_image)

    def _data(self, split: str) -> ImageDataset:
        """What the classifier is trained on, and judged by."""
        resolved = self.plan.resolved
        if self.cfg.eval.extractor.trained_on == "data":
            return {"train": resolved.data, "val": resolved.val}[split]
        return build.shapes(self.cfg, split, resolved.data_caches)

    def _untrained(self) -> Classifier:
        return cast(Classifier, build.extractor(self.cfg, self.plan.resolved.data.declared))

    def work(self, ctx: Context, folder: Path) -> float:
        train, val = self._data("train"), self._data("val")
        net = self._untrained()
        done = ctx.train(self.address, folder, ClassifierLoss(net, Draws(0)), train, ctx.cfg.eval.extractor_fit)
        if ctx.main:
            net.load_state_dict(load_tensors(folder / self._kept))
            frozen(net, ctx.device)
            few = Original(train, spread(len(train), FEATURE_IMAGES))
            n = len(few.indices)
            batches = (few(list(range(i, min(i + AT_ONCE, n)))).permute(0, 3, 1, 2) for i in range(0, n, AT_ONCE))
            features_ND = extract(batches, net, ctx.device).features.astype(np.float64)
            found = {"mean_D": features_ND.mean(axis=0), "deviation_D": features_ND.std(axis=0)}
            save_tensors(folder / FEATURES, {name: torch.from_numpy(numbers) for name, numbers in found.items()})
            known = examine(net, val, ctx.device)
            write_json(folder / "scores.json", {"images": len(val), "fields": known})
            ctx.say(f" extractor: {in_words(known)}; {len(val)} val images")
        return done.seconds

    def load(self, ctx: Context) -> Classifier:
        net, folder = self._untrained(), self.make(ctx)
        net.load_state_dict(load_tensors(folder / self._kept))
        net.standardise(**load_tensors(folder / FEATURES))
        return cast(Classifier, frozen(net, ctx.device))

    @property
    def _kept(self) -> str:
        return "weights.safetensors" if self.cfg.eval.extractor_fit.ema is None else "ema.safetensors"
