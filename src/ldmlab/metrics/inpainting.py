"""How well holes are filled: FID and perceptual distance of completed images, by the share of the image that was hidden.

All sets keep the known pixels, so that whatever differs from real images differs because of the hole.

Shape letters: B batch, N images, H W pixels, C colours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from ldmlab.conditioning.compose import parts_of
from ldmlab.conditioning.inpaint import Inpaint
from ldmlab.metrics.beside import Measure, TaskMetric, as_float, common_sets, features_of, parts, size, truth
from ldmlab.metrics.fills import mean_fill, patch_fill
from ldmlab.metrics.frechet import fid_score
from ldmlab.metrics.intervals import Score, mean_score
from ldmlab.metrics.metric import Computed, Inputs
from ldmlab.ranges import Fraction, Items

FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"mean": mean_fill, "patch": patch_fill}


@dataclass(frozen=True)
class Inpainting(TaskMetric):
    """FID against the reference, and the perceptual distance to the true image over the share that was hidden.

    shares: ends of the bins of that share; 0 and 1 are the outer ends. FID of a bin needs more images than features.
    """

    name: ClassVar[str] = "inpainting"
    label: ClassVar[str] = "inpainting"
    rows: ClassVar[dict[str, str]] = {"null": "null condition", "mean": "mean colour", "patch": "nearest patch"}
    of_samples: ClassVar[tuple[str, ...]] = ("features", "pixels", "pairs", "conditions:hole")
    estimator: ClassVar[str] = "known pixels kept; perceptual distance over the hidden share"

    shares: Annotated[list[Fraction], Items(distinct=True)] = field(default_factory=lambda: [0.2])

    def bins(self) -> dict[str, tuple[float, float]]:
        """Name → its ends, the first for all images."""
        ends = sorted({0.0, *self.shares, 1.0})
        return {
            "": (0.0, 1.0),
            **{f"{low:.0%}_{high:.0%}".replace("%", ""): (low, high) for low, high in pairwise(ends)},
        }

    def all_measures(self) -> tuple[Measure, ...]:
        said = {name: f", {low:.0%} to {high:.0%} hidden" if name else "" for name, (low, high) in self.bins().items()}
        return tuple(
            Measure("_".join(filter(None, (key, name))), f"{label}{words}", "lower")
            for name, words in said.items()
            for key, label in (("fid", "FID, holes filled"), ("perceptual", "perceptual, in the hole"))
        )

    def images(self, inputs: Inputs, rows: list[int], row: str) -> Tensor:
        """One set, uint8 [B, H, W, C]."""
        if row not in FILLS:
            return common_sets(inputs, row)(rows)
        hole_BHW = holes(inputs, rows).numpy()
        filled = [FILLS[row](image, hole) for image, hole in zip(truth(inputs)(rows).numpy(), hole_BHW, strict=True)]
        return torch.from_numpy(np.stack(filled))

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        n, distance = size(inputs), inputs.distance
        made = inputs.once((self.name, row), lambda: torch.cat([self.images(inputs, rows, row) for rows in parts(n)]))
        share_N = torch.cat([holes(inputs, rows).float().mean(dim=(1, 2)) for rows in parts(n)]).numpy()
        samples, reference = inputs.both()
        samples = features_of(inputs, lambda rows: made[rows], (self.name, row)) if row else samples
        apart_N = None
        if distance is not None:
            pairs = (
                (as_float(truth(inputs)(rows), inputs.device), as_float(made[rows], inputs.device)) for rows in parts(n)
            )
            apart_N = torch.cat([distance(*pair).reshape(-1).double().cpu() for pair in pairs]).numpy() / share_N
        found = {}
        for name, (low, high) in self.bins().items():
            within_N = (share_N > low) & (share_N <= high)
            own = samples.features[within_N]
            if len(own) > own.shape[1] or (not name and len(own) > 1):
                score, _ = fid_score(own, reference.features, inputs.bootstrap, inputs.seed, inputs.options)
                found["_".join(filter(None, ("fid", name)))] = score
            if apart_N is not None and len(own) > 1:
                method = "perceptual distance of the completed image over the share that was hidden, mean over images"
                score = mean_score(apart_N[within_N], inputs.bootstrap, inputs.seed, method)
                found["_".join(filter(None, ("perceptual", name)))] = score
        return found

    def compute(self, inputs: Inputs) -> Computed:
        found = super().compute(inputs)
        missing = [m.label for m in self.all_measures() if self.named(m.key, "") not in found.scores]
        said = [f"inpainting: too few images for {', '.join(missing)}. More eval.samples give it."] if missing else []
        return Computed(found.scores, said, found.pictures)


def holes(inputs: Inputs, rows: list[int]) -> Tensor:
    """Where the hole of each condition is, bool [B, H, W] on the CPU."""
    assert inputs.conditions is not None
    condition = next(part for part in parts_of(inputs.conditioner) if isinstance(part, Inpaint))  # as `needs` says
    return (condition.mask(inputs.conditions.batch(rows)) > 0)[:, 0].cpu()
