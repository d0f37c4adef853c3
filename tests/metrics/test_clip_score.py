"""CLIP score with a tiny CLIP: equal to the model's own cosine; what it is compared with; its model by content."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditioning.outside_models import TEXTS, save

from ldmlab.conditioning.clip import DEVIATION, MEAN
from ldmlab.errors import ConfigError
from ldmlab.metrics.clip_score import ClipScore
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.metric import Inputs

N = 6


class Captions:
    fields = ("caption",)

    def batch(self, indices: list[int]) -> dict[str, Any]:
        return {"caption": [TEXTS[i % 2] for i in indices]}


@torch.no_grad()
def cosines(folder: Path, images: np.ndarray, texts: list[str]) -> np.ndarray:
    """100 · max(cosine, 0) by CLIPModel's own forward, for images of its own size."""
    from transformers import AutoTokenizer, CLIPModel

    net: Any = CLIPModel.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=77, return_tensors="pt")
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, DEVIATION))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / deviation
    out = net(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], pixel_values=pixels)
    both = [each / each.norm(dim=1, keepdim=True) for each in (out.image_embeds, out.text_embeds)]
    found: np.ndarray = 100 * (both[0] * both[1]).sum(1).clamp(min=0).numpy()
    return found


def test_scores_beside_another_caption_and_the_empty_prompt(tmp_path: Path) -> None:
    folder, null = save(tmp_path / "clip", "clip", seed=3), tmp_path / "null"
    null.mkdir()
    rng = np.random.default_rng(0)
    images, nothing = rng.integers(0, 256, (2, N, 32, 32, 3), dtype=np.uint8)
    np.save(null / "images.npy", nothing)
    metric = ClipScore(model=str(folder))
    inputs = Inputs(
        100, 0, FeatureSet(np.zeros((N, 1), np.float32)), read_samples=lambda rows: torch.from_numpy(images[rows]),
        conditions=Captions(), stages={"null_samples": null},
    )  # fmt: skip
    scores = metric.compute(inputs).scores
    texts = [TEXTS[i % 2] for i in range(N)]
    assert set(scores) == set(metric.declarations())
    assert scores["clip_score"].value == pytest.approx(cosines(folder, images, texts).mean(), rel=1e-4)
    other = cosines(folder, images, texts[-1:] + texts[:-1])
    assert scores["clip_score_other"].value == pytest.approx(other.mean(), rel=1e-4)
    assert scores["clip_score_null"].value == pytest.approx(cosines(folder, nothing, texts).mean(), rel=1e-4)
    assert len({round(score.value, 4) for score in scores.values()}) == 3
    assert len(str(metric.settings()["model"])) == 64  # what it holds, not where it lies


def test_a_model_must_be_given() -> None:
    with pytest.raises(
        ConfigError, match=r"metric\.clip_score\.model is not set: .* Give a local folder, or a name on the hub"
    ):
        ClipScore().settings()
