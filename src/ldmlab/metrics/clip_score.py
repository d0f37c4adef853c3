"""CLIP score (Hessel et al. 2104.08718): how near a CLIP model sees samples and their captions.

Shape letters: B batch, N images, C channels, H W pixels, D features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ldmlab.conditioning import outside
from ldmlab.conditioning.clip import Clip, content
from ldmlab.errors import ConfigError
from ldmlab.metrics.beside import Measure, TaskMetric, common_sets, size
from ldmlab.metrics.caption import captions
from ldmlab.metrics.intervals import Score, mean_score
from ldmlab.metrics.metric import Inputs, Metric
from ldmlab.ranges import File

OPTION = "metric.clip_score.model"


@dataclass(frozen=True)
class ClipScore(TaskMetric):
    """100 · max(cosine, 0) of a sample's and its caption's embedding, mean over samples. Beside it the same with the caption of the one
    before, and of samples of the empty prompt.

    model: a local folder in the layout of `transformers`, or a name on the hub. Numbers of two models do not compare; the one used stands
    on the card by its content.
    """

    name: ClassVar[str] = "clip_score"
    label: ClassVar[str] = "CLIP score"
    of_samples: ClassVar[tuple[str, ...]] = ("pixels", "text")
    measures: ClassVar[tuple[Measure, ...]] = (Measure("", label, "higher"),)
    rows: ClassVar[dict[str, str]] = {"other": "another's caption", "null": "empty prompt"}
    interval: ClassVar[str] = Metric.interval
    covers: ClassVar[str] = "the mean over other samples with captions drawn in the same way"

    model: File | None = None

    @property
    def folder(self) -> Path:
        """ConfigError where there is none."""
        if self.model is None:
            raise ConfigError(
                f"{OPTION} is not set: CLIP score needs a CLIP model. Give a local folder, or a name on the hub."
            )
        return outside.located(self.model, OPTION)

    @property
    def files(self) -> dict[str, str]:
        """Option → what it holds, for the card and for ids."""
        return {"model": content(self.folder, OPTION)}

    def settings(self) -> dict[str, object]:
        return {**super().settings(), **self.files}

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        net = inputs.once("CLIP", lambda: Clip(self.folder, OPTION))
        text_ND = inputs.once("CLIP texts", lambda: net.texts(list(captions(inputs))))
        of = row if row == "null" else ""
        image_ND = inputs.once(("CLIP images", of), lambda: net.images(common_sets(inputs, of), size(inputs)))
        words_ND, method = {
            "": (text_ND, "each sample with its caption"),
            "other": (text_ND.roll(1, dims=0), "each sample with the caption of the one before"),
            "null": (text_ND, "samples of the empty prompt with the captions"),
        }[row]
        values_N = 100 * (image_ND * words_ND).sum(dim=1).clamp(min=0).double().numpy()
        return {"": mean_score(values_N, inputs.bootstrap, inputs.seed, method)}

    def images(self, inputs: Inputs, rows: list[int], row: str) -> Tensor | None:
        return None  # the sheet of samples shows them
