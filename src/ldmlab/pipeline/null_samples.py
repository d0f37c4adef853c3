"""Samples under the null condition: what the denoiser draws when nothing is asked of it, for scores of how well a condition is met."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ldmlab.errors import ConfigError
from ldmlab.guidance.stack import Bound, Guided, Towards
from ldmlab.metrics.extraction import extract_all
from ldmlab.pipeline import large
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.fitting import knows_null
from ldmlab.pipeline.samples import SamplesStage
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.store.files import read_array
from ldmlab.terminal import number

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

ASKED = ("label_mode", "label", "prompt")  # options of samples that say what is asked
SCALES = ("guidance", "guidance_interval", "guidance_rescale")  # of a sampler: they compare with the null condition


class NullSamplesStage(SamplesStage):
    """As many samples, from the same noise as those of the run, with the null condition; and their features (features.npz).

    Only where a metric needs them (`stage:null_samples`). What a condition shows of an image beside steering the denoiser, the
    known pixels around a hole, stays in it.
    """

    name: ClassVar[str] = "null_samples"
    version: ClassVar[int] = 2
    due: ClassVar[str | None] = None

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return super().of(plan) if plan.resolved.conditioner.needs else []

    def check(self) -> None:
        if not knows_null(self.cfg):
            raise ConfigError(
                "a metric of this run compares with the null condition, and cond.drop=0 never trains it. Use cond.drop=0.1, or leave "
                "the metric out; those of tasks have an option for it: metric.<name>.null_condition=false."
            )

    def own(self) -> dict[str, Any]:
        """Without what makes no difference here."""
        found = {name: value for name, value in super().own().items() if name not in ASKED}
        if self.closed_form:
            return found
        kinds = [kind for kind in self.plan.resolved.guidance if not kind.reads_null and not kind.fields]
        found["guidance"] = {kind.name: kind.options() for kind in kinds if kind.options()}
        return found | {"sampler": {name: value for name, value in found["sampler"].items() if name not in SCALES}}

    def upstream(self) -> dict[str, Stage | str]:
        return {**super().upstream(), "extractor": extractor_of(self.plan)}

    def row(self) -> Row:
        resolved, n = self.plan.resolved, self.cfg.eval.samples
        costs = resolved.sampled_costs
        each = resolved.sampler.evaluations * costs.forward + costs.decode
        return Row(f"{number(n)} samples · the null condition", n, each, n * math.prod(resolved.size) * 3 / 1e6)

    def work(self, ctx: Context, folder: Path) -> None:
        super().work(ctx, folder)
        images, found = read_array(folder / "images.npy"), self.plan.resolved
        extract_all(
            lambda rows: large.of_training_size(found, images[rows], rows), len(images), load_extractor(self.plan, ctx), folder,
            ctx.cfg.eval.batch_size, ctx.device, ctx.ranks, title="null features",
        )  # fmt: skip

    def _bound(
        self, guided: Guided, batch: dict[str, Any], n: int, device: Any, towards: Towards | None = None
    ) -> Bound:
        return guided.unconditional(n, self.plan.resolved.sampled_shape[1:], device)
