"""The segmenter that judges maps and boxes in samples (`metrics.segmenter`), trained where a metric asks for `stage:segmenter`."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from ldmlab import build
from ldmlab.data.base import ImageDataset, channels_of, to_batch
from ldmlab.data.batches import eight_bits
from ldmlab.data.parcel import on_device
from ldmlab.errors import ConfigError
from ldmlab.metrics.iou import Confusion
from ldmlab.metrics.segmenter import NETWORK, Segmenter, load_segmenter
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.costs import flops_of, millions, parameters_of
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.store.files import write_json
from ldmlab.training.loop import total_steps
from ldmlab.training.segmenter_loss import SegmenterLoss

CLASSES, DEPTH = "segmentation", "depth"  # the fields that it learns; the second where the data has it
AT_ONCE = 250  # val images that it is examined on at a time


class SegmenterStage(Stage):
    """weights.safetensors; network.json, which `load_segmenter` builds it from; scores.json, what it knows of val images.

    It learns from the run's own data with its class maps. Generated shapes have them whatever `data.fields` says.
    """

    name: ClassVar[str] = "segmenter"
    version: ClassVar[int] = 2

    def own(self) -> dict[str, Any]:
        return {"segmenter": self.cfg.segmenter, "fields": self._fields()}

    def upstream(self) -> dict[str, Stage | str]:
        return {"data": self._data("train").fingerprint()}

    def check(self) -> None:
        if CLASSES not in self._data("val").fields:
            raise ConfigError(
                f"a metric of this run needs the segmenter, which learns from the field '{CLASSES}', and the data has none. Leave "
                "the metric out of eval.metrics, or use data with class maps."
            )

    def row(self) -> Row:
        fit, size, net = self.cfg.segmenter.fit, self.plan.resolved.resolution, None
        if self.cfg.dry_run:
            with torch.device("meta"):
                net = self._untrained()
        forward = (
            flops_of(lambda: net(torch.zeros(1, net.image_channels, size, size, device="meta")))
            if net is not None
            else 0.0
        )
        many = f" {millions(parameters_of(net))}" if net is not None else ""
        return Row(f"segmenter{many} · {', '.join(self._fields())}", total_steps(fit) * fit.batch_size, 3 * forward)

    def _data(self, split: str) -> ImageDataset:
        return build.with_fields(self.cfg, split, self.plan.resolved.data_caches, [CLASSES, DEPTH])

    def _fields(self) -> list[str]:
        return [name for name in (CLASSES, DEPTH) if name in self._data("val").fields]

    def _untrained(self) -> Segmenter:
        (field,) = [field for field in self._data("val").declared if field.name == CLASSES]
        with build.seeded("segmenter"):
            return Segmenter(field.values or 1, self.cfg.segmenter.width, channels_of(self._data("val")))

    def work(self, ctx: Context, folder: Path) -> float:
        net, train = self._untrained(), self._data("train")
        if ctx.main:
            write_json(
                folder / NETWORK, {"classes": net.classes, "width": net.width, "image_channels": net.image_channels}
            )
        loss = SegmenterLoss(net, CLASSES, DEPTH if DEPTH in self._fields() else None)
        done = ctx.train(self.address, folder, loss, train, ctx.cfg.segmenter.fit)
        if ctx.main:
            known = examined(load_segmenter(folder, ctx.device), self._data("val"), ctx.device)
            write_json(folder / "scores.json", known)
            ctx.say(f" segmenter: {known['pixels_right']:.1%} of val pixels right, mIoU {known['miou']:.3f}")
        return done.seconds


def examined(net: Segmenter, val: ImageDataset, device: torch.device) -> dict[str, Any]:
    """What it knows of images that it has not seen: pixels right and mIoU, beside an answer of 0 everywhere."""
    found, nothing = Confusion(net.classes), Confusion(net.classes)
    for begin in range(0, len(val), AT_ONCE):
        batch = to_batch(val.__getitems__(list(range(begin, min(begin + AT_ONCE, len(val))))))
        truth_BHW = batch[CLASSES].long()
        found.update(net.classes_of(on_device(eight_bits(batch["image"]).permute(0, 3, 1, 2), device)).cpu(), truth_BHW)
        nothing.update(torch.zeros_like(truth_BHW), truth_BHW)
    return {
        "images": len(val), "pixels_right": found.pixels_right(), "miou": found.miou(), "miou_of_background": nothing.miou(),
    }  # fmt: skip
