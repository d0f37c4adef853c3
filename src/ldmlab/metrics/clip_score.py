"""CLIP score (Hessel et al. 2104.08718): how near a CLIP model sees samples and their captions.

Shape letters: B batch, N images, C channels, H W pixels, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ldmlab.conditioning import outside
from ldmlab.conditioning.tokenizer import FromFolder
from ldmlab.errors import ConfigError
from ldmlab.metrics.beside import Measure, TaskMetric, common_sets, size
from ldmlab.metrics.caption import captions
from ldmlab.metrics.intervals import Score, mean_score
from ldmlab.metrics.metric import Inputs, Metric
from ldmlab.ranges import File

OPTION = "metric.clip_score.model"
AT_ONCE = 64
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images


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
        names = (*outside.TOKENIZER, outside.CONFIG, *outside.weights(self.folder, OPTION))
        return {"model": outside.digest(self.folder, names)}

    def settings(self) -> dict[str, object]:
        return {**super().settings(), **self.files}

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        net = inputs.once("CLIP", lambda: Clip(self.folder))
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


class Clip:
    """Unit embeddings of images and texts, by a CLIP model from a folder."""

    def __init__(self, folder: Path):
        from transformers import CLIPConfig, CLIPModel

        net: Any = outside.model(CLIPConfig, CLIPModel, folder, False, OPTION)
        self.net, self.side = net.requires_grad_(False).eval(), net.config.vision_config.image_size
        self.tokenizer = FromFolder(folder, net.config.text_config.max_position_embeddings, OPTION)

    @torch.no_grad()
    def images(self, read: Callable[[list[int]], Tensor], n: int) -> Tensor:
        """[N, D] of images 0 … n-1; `read(rows)` gives uint8 [B, H, W, 3]. They are resized by an antialiased bicubic."""
        mean_311, deviation_311 = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, DEVIATION))
        parts = []
        for begin in range(0, n, AT_ONCE):
            image_BCHW = read(list(range(begin, min(begin + AT_ONCE, n)))).permute(0, 3, 1, 2).float() / 255
            image_BCHW = F.interpolate(image_BCHW, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
            hidden = self.net.vision_model(pixel_values=(image_BCHW - mean_311) / deviation_311).pooler_output
            parts.append(F.normalize(self.net.visual_projection(hidden), dim=1))
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """[N, D]."""
        parts = []
        for begin in range(0, len(texts), AT_ONCE):
            ids = self.tokenizer(texts[begin : begin + AT_ONCE])
            hidden = self.net.text_model(input_ids=ids.id_BL, attention_mask=ids.seen_BL.long()).pooler_output
            parts.append(F.normalize(self.net.text_projection(hidden), dim=1))
        return torch.cat(parts)
