"""Samples for each other's conditions: what is left of a score when a condition is not the one that the score asks for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from ldmlab.conditioning.source import ConditionSource
from ldmlab.metrics.nearest import SHUFFLED
from ldmlab.pipeline.samples import SamplesStage
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.randomness import seed_of
from ldmlab.terminal import number

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


class ShuffledSamplesStage(SamplesStage):
    """As many samples as the run's, from the same noise, sample i for the condition of sample `order[i]`, a random permutation.

    Only where a metric needs them (`stage:shuffled_samples`).
    """

    name: ClassVar[str] = SHUFFLED
    version: ClassVar[int] = 1
    due: ClassVar[str | None] = None

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return super().of(plan) if plan.resolved.conditioner.needs else []

    def row(self) -> Row:
        n, size = self.cfg.eval.samples, self.plan.resolved.resolution
        return Row(f"{number(n)} samples · conditions shuffled", n, self._cost(), n * size * size * 3 / 1e6)

    def _source(self) -> ConditionSource:
        return Shuffled(super()._source(), shuffle(self.cfg.eval.samples, self.cfg.eval.seed))


def shuffle(n: int, seed: int) -> np.ndarray:
    """A permutation of 0 … n-1, drawn uniformly: one of them stays where it is on average."""
    return np.random.Generator(np.random.PCG64(seed_of("shuffled", seed))).permutation(n)


@dataclass(frozen=True)
class Shuffled:
    """Condition `order[i]` of another source for image i."""

    source: ConditionSource
    order: np.ndarray

    @property
    def fields(self) -> tuple[str, ...]:
        return self.source.fields

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return self.source.batch([int(self.order[i]) for i in indices])

    def describe(self, i: int) -> str:
        return self.source.describe(int(self.order[i]))

    def picture(self, i: int) -> np.ndarray | None:
        return self.source.picture(int(self.order[i]))

    def record(self, n: int) -> dict[str, Any]:
        return {"fields": list(self.fields), "condition_of": self.order[:n].tolist()}
