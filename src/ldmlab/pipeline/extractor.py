"""The feature extractor of the scores: from a file, or (shapes) a classifier trained here."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ldmlab import build
from ldmlab.data.base import to_batch
from ldmlab.metrics.features import Extractor, extract
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.costs import flops_of, millions, parameters_of
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import write_json
from ldmlab.training.classifier_loss import ClassifierLoss
from ldmlab.training.loop import total_steps

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


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
    extractor = build.extractor(ctx.cfg)
    return None if extractor is None else frozen(extractor, ctx.device)


def _forward_flops(net: nn.Module, size: int) -> float:
    """Of one image, counted on the meta device: an image of 4096x4096 would take a minute."""
    shapes = copy.deepcopy(net).to("meta")
    return flops_of(lambda: shapes(torch.zeros(1, 3, size, size, device="meta")))


class ExtractorStage(Stage):
    """weights.safetensors and ema.safetensors of the classifier, scores.json with its accuracy on val images."""

    name: ClassVar[str] = "extractor"
    version: ClassVar[int] = 2
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
        return {"data": build.shapes(self.cfg, "train", self.plan.resolved.data_caches).fingerprint()}

    def row(self) -> Row:
        fit, size = self.cfg.eval.extractor_fit, self.plan.resolved.resolution
        net = cast(nn.Module, self.plan.resolved.extractor)
        per_image = 3 * _forward_flops(net, size) if self.cfg.dry_run else 0.0
        what = f"{self.label} classifier {millions(parameters_of(net))}"
        return Row(what, total_steps(fit) * fit.batch_size, per_image)

    def work(self, ctx: Context, folder: Path) -> float:
        caches = self.plan.resolved.data_caches
        train, val = build.shapes(ctx.cfg, "train", caches), build.shapes(ctx.cfg, "val", caches)
        net: Any = build.extractor(ctx.cfg)
        done = ctx.train(self.address, folder, ClassifierLoss(net, Draws(0)), train, ctx.cfg.eval.extractor_fit)
        if ctx.main:
            net.load_state_dict(load_tensors(folder / self._kept))
            found = extract((b.permute(0, 3, 1, 2) for b in _images(val)), frozen(net, ctx.device), ctx.device)
            assert found.logits is not None
            accuracy = float((found.logits.argmax(1) == val.labels()).mean())
            write_json(folder / "scores.json", {"accuracy": accuracy, "images": len(val)})
            ctx.say(f" extractor: {accuracy:.1%} of {len(val)} val images classified correctly")
        return done.seconds

    def load(self, ctx: Context) -> Any:
        net: Any = build.extractor(ctx.cfg)
        net.load_state_dict(load_tensors(self.make(ctx) / self._kept))
        return frozen(net, ctx.device)

    @property
    def _kept(self) -> str:
        return "weights.safetensors" if self.cfg.eval.extractor_fit.ema is None else "ema.safetensors"


def _images(data: Any, size: int = 256) -> Iterator[Tensor]:
    """All images of a data set, uint8 BHWC."""
    for begin in range(0, len(data), size):
        yield to_batch(data.__getitems__(list(range(begin, min(begin + size, len(data))))))["image"]
