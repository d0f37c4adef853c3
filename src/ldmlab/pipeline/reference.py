"""Features of the real images, through the same loader as training, once for all runs on this data."""

from pathlib import Path
from typing import Any, ClassVar

from ldmlab import build
from ldmlab.metrics.extraction import Original, extract_all, load_features, reference_indices
from ldmlab.metrics.features import FeatureSet
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.stage import Stage


class ReferenceStage(Stage):
    """features.npz; no line of its own in the plan: it belongs to the scores."""

    name: ClassVar[str] = "reference"
    version: ClassVar[int] = 2
    listed: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["data"]

    def own(self) -> dict[str, Any]:
        return {"reference": self.cfg.eval.reference}

    def upstream(self) -> dict[str, Stage | str]:
        return {"data": self.plan.stage(DataStage), "extractor": extractor_of(self.plan)}

    def images(self, ctx: Context) -> Original:
        """The real images by row, through the loader of training."""
        wanted, resolved = ctx.cfg.eval.reference, self.plan.resolved
        known = {"train": ctx.data, "val": ctx.val}
        real = known.get(wanted.split) or build.dataset(ctx.cfg, wanted.split, resolved.data_caches)
        return Original(real, reference_indices(len(real), wanted.images))

    def work(self, ctx: Context, folder: Path) -> None:
        real, extractor = self.images(ctx), load_extractor(self.plan, ctx)
        size = ctx.cfg.eval.batch_size
        extract_all(real, len(real.indices), extractor, folder, size, ctx.device, ctx.ranks, title="reference")

    def load(self, ctx: Context) -> FeatureSet:
        return load_features(self.make(ctx) / "features.npz")
