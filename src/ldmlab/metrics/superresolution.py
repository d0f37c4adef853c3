"""How near enlarged images come to the true ones, and how real they look, beside a bicubic enlargement and a regression network.

Means of squares are best for PSNR and blurred, which perceptual distance and FID see (the paper's Table 5 has the same rows).

Shape letters: B batch, H W pixels, C colours.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldmlab.conditioning.compose import parts_of
from ldmlab.conditioning.low_resolution import LowResolution, resized
from ldmlab.data.batches import to_uint8
from ldmlab.metrics.beside import Measure, TaskMetric, as_float, common_sets, features_of, parts, size, stored, truth
from ldmlab.metrics.frechet import fid_score
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.reconstruction import ReconstructionError

REGRESSED = "regressed"  # the stage that draws the regression network's answers


@dataclass(frozen=True)
class SuperResolution(TaskMetric):
    """PSNR, SSIM and perceptual distance to the true image, and FID against the reference.

    regression: a network of the denoiser's size, condition and training learns the mean of the latent, and is scored too.
    """

    name: ClassVar[str] = "superres"
    label: ClassVar[str] = "super-resolution"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("psnr", "PSNR", "higher", "dB"), Measure("ssim", "SSIM", "higher"),
        Measure("perceptual", "perceptual", "lower"), Measure("fid", "FID to the reference", "lower"),
    )  # fmt: skip
    rows: ClassVar[dict[str, str]] = {
        "null": "null condition", "bicubic": "bicubic", "regression": "regression of equal size",
    }  # fmt: skip

    regression: bool = True

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        own = ("features", "pixels", "pairs", "conditions:small_image")
        return (*own, *super().needs, *([f"stage:{REGRESSED}"] if self.regression else []))

    def chosen_rows(self) -> list[str]:
        return [row for row in super().chosen_rows() if row != "regression" or self.regression]

    def images(self, inputs: Inputs, rows: list[int], row: str) -> Tensor:
        """One set, uint8 [B, H, W, C]."""
        if row == "regression":
            return stored(inputs, REGRESSED)(rows)
        if row != "bicubic":
            return common_sets(inputs, row)(rows)
        assert inputs.conditions is not None
        condition = next(
            part for part in parts_of(inputs.conditioner) if isinstance(part, LowResolution)
        )  # as `needs` says
        batch = inputs.conditions.batch(rows)
        return to_uint8(resized(condition.small(batch), tuple(batch["image"].shape[2:])))

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        error = ReconstructionError(inputs.distance)
        for rows in parts(size(inputs)):
            images = (as_float(image, inputs.device) for image in (truth(inputs)(rows), self.images(inputs, rows, row)))
            error.update(*images)
        found = error.compute(inputs.bootstrap, inputs.seed)
        samples, reference = inputs.both()
        if row:
            samples = features_of(inputs, lambda rows: self.images(inputs, rows, row), (self.name, row))
        found["fid"], _ = fid_score(samples.features, reference.features, inputs.bootstrap, inputs.seed, inputs.options)
        return found
