"""Caption agreement: every caption of the data is read back to its scene; shares, baseline and null in closed form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmlab.data.scene import COLOURS, FILLS, KINDS, SIZES, scenes, stream
from ldmlab.data.scene import caption as caption_of
from ldmlab.metrics.caption import ATTRIBUTES, FORM, Caption
from ldmlab.metrics.extraction import save_features
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.metric import Inputs, available, check

N = 400
SCENE = scenes(stream(0, "val"), np.arange(N))
TRUTH = {
    "label": SCENE.kind_BM[:, 0], "colour": SCENE.colour_BM[:, 0], "background": SCENE.background_B, "fill": SCENE.fill_BM[:, 0],
}  # fmt: skip
SIDE = 2 * SCENE.radius_BM[:, 0]


class Captions:
    fields = ("caption",)

    def __init__(self, texts: list[str]):
        self.texts = texts

    def batch(self, indices: list[int]) -> dict[str, Any]:
        return {"caption": [self.texts[i] for i in indices]}


def answers(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What a perfect classifier says of these scenes."""
    found = {name: np.eye(10)[truth[rows]] for name, truth in TRUTH.items()}
    place = np.stack([SCENE.x_BM[rows, 0], SCENE.y_BM[rows, 0], SIDE[rows]], axis=1)
    return {**found, "place": place}


def inputs(folder: Path, texts: list[str], shown: np.ndarray, null: np.ndarray) -> Inputs:
    """Samples that show these scenes: their features are the scenes' numbers."""
    save_features(folder / "features.npz", FeatureSet(null[:, None].astype(np.float32)))
    return Inputs(
        100, 0, FeatureSet(shown[:, None].astype(np.float32)), conditions=Captions(texts), stages={"null_samples": folder},
        answers=lambda features: answers(features.features[:, 0].astype(np.int64)),
    )  # fmt: skip


def test_every_caption_of_the_data_is_read_back_to_its_scene() -> None:
    for b in range(N):
        found = FORM.search(caption_of(SCENE, b))
        assert found is not None
        assert found["kind"] == KINDS[SCENE.kind_BM[b, 0]] and found["colour"] == list(COLOURS)[SCENE.colour_BM[b, 0]]
        assert (found["fill"] or "plain") == FILLS[SCENE.fill_BM[b, 0]] and found["size"] in SIZES[1:]


def test_shares_in_closed_form(tmp_path: Path) -> None:
    """Every fourth sample shows another scene; samples of the empty prompt all show scene 0."""
    texts, shown = [caption_of(SCENE, b) for b in range(N)], np.arange(N)
    shown[::4] = np.roll(shown, 1)[::4]
    scores = Caption().compute(inputs(tmp_path, texts, shown, np.zeros(N, dtype=np.int64))).scores
    assert set(scores) == set(Caption().declarations())
    size = (SIDE >= 0.62).astype(int)
    for attribute in ATTRIBUTES:
        truth = size if attribute.name == "size" else TRUTH[attribute.field]
        name = f"caption_{attribute.name}"
        assert scores[name].value == pytest.approx((truth[shown] == truth).mean())
        assert scores[f"{name}_commonest"].value == pytest.approx(np.bincount(truth).max() / N)
        assert scores[f"{name}_null"].value == pytest.approx((truth[0] == truth).mean())
        assert scores[name].low < scores[name].value < scores[name].high and scores[name].n == N
    assert scores["caption_kind"].low > scores["caption_kind_null"].high


def test_captions_of_another_form_are_left_out_and_said(tmp_path: Path) -> None:
    texts = [caption_of(SCENE, b) for b in range(N)]
    some = [text if b % 2 else "a photograph of a dog" for b, text in enumerate(texts)]
    rows = np.arange(N)
    found = Caption().compute(inputs(tmp_path, some, rows, rows))
    assert found.scores["caption_kind"].n == N // 2 and found.scores["caption_kind"].value == 1
    assert found.warnings == ["caption agreement leaves out 200 captions of another form"]
    none = Caption().compute(inputs(tmp_path, ["a dog"] * N, rows, rows))
    assert not none.scores and "no caption has the form" in none.warnings[0]


def test_where_nothing_is_asked_in_words_it_is_left_out() -> None:
    offered = available(logits=True, classes_of_data=True, conditions=["label"], answers=["label", "colour"])
    assert check([Caption(required=False)], offered | {"stage:null_samples"}) == []
    offered = available(
        logits=True,
        classes_of_data=True,
        conditions=["caption"],
        answers=["label", "colour", "background", "fill", "place"],
    )
    assert check([Caption()], offered | {"stage:null_samples"}) == [Caption()]
