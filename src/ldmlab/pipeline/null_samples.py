"""The same samples under the null condition: what a metric of a task shows beside them (`metrics.beside`)."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from ldmlab.conditioning.source import ConditionSource
from ldmlab.errors import ConfigError
from ldmlab.guidance.stack import Bound, Guided
from ldmlab.metrics.beside import NULL
from ldmlab.pipeline.cooldown import scored
from ldmlab.pipeline.decoder import DecoderStage, decoding
from ldmlab.pipeline.resolved import knows_null
from ldmlab.pipeline.samples import SamplesStage
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.terminal import number


class NullSamplesStage(SamplesStage):
    """images.npy: sample i with the same noise as image i of the samples, drawn without its condition and without guidance.

    What a condition shows of an image beside steering the denoiser (known pixels around a hole) stays in it.
    """

    name: ClassVar[str] = NULL
    version: ClassVar[int] = 1
    due: ClassVar[str | None] = None

    @property
    def guided(self) -> bool:
        return False

    def upstream(self) -> dict[str, Stage | str]:
        decoder = {role: stage for role, stage in decoding(self.plan).items() if isinstance(stage, DecoderStage)}
        return {"denoiser": scored(self.plan, self.images), **decoder}

    def row(self) -> Row:
        resolved, n = self.plan.resolved, self.cfg.eval.samples
        evaluations = 0 if self.closed_form else resolved.sampler.evaluations
        cost = evaluations * resolved.costs.forward + resolved.costs.decode
        return Row(
            f"{number(n)} samples · {self.label} · the null condition", n, cost, n * resolved.resolution**2 * 3 / 1e6
        )

    def check(self) -> None:
        if not knows_null(self.cfg):
            asking = [m.name for m in self.plan.resolved.metrics if getattr(m, "null_condition", False)]
            raise ConfigError(
                "a metric of this run compares with the null condition, and cond.drop=0 never trains it. Use cond.drop=0.1, or set "
                f"{', '.join(f'metric.{name}.null_condition=false' for name in asking)}."
            )

    def bound(
        self, guided: Guided, batch: dict[str, Any], n: int, size: tuple[int, int], device: torch.device
    ) -> Bound:
        model = guided.model
        return Bound(model.denoise, model.denoiser.prepared(model.denoiser.null(n, size, device)))

    def _write(self, folder: Path, source: ConditionSource, seeds: list[int]) -> None:
        """The images alone: their conditions are those of the samples."""
