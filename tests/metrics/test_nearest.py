"""The nearest training image, beside shuffled conditions: by hand, and through a whole command on a stand-in of COCO."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmlab.conditioning.source import HeldOut
from ldmlab.config.compose import load
from ldmlab.data.shapes import Shapes
from ldmlab.errors import ConfigError
from ldmlab.metrics.beside import NULL
from ldmlab.metrics.evaluate import evaluate
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.nearest import SHUFFLED, Nearest, squares
from ldmlab.pipeline.run import execute, prepare
from ldmlab.pipeline.shuffled_samples import Shuffled, shuffle

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from stand_ins import coco

N = 24


def scored(
    folder: Path, samples: np.ndarray, shuffled: np.ndarray, reference: np.ndarray, source: HeldOut
) -> dict[str, float]:
    for name, images in ((NULL, np.full_like(samples, 128)), (SHUFFLED, shuffled)):
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / "images.npy", images)
    inputs = Inputs(
        20, 0, FeatureSet(np.zeros((len(samples), 2), np.float32)), FeatureSet(np.zeros((len(reference), 2), np.float32)),
        read_samples=lambda rows: torch.from_numpy(samples[rows]), read_reference=lambda rows: torch.from_numpy(reference[rows]),
        pairs=lambda rows: (torch.from_numpy(samples[rows]), source.images(rows)), conditions=source,
        stages={NULL: folder / NULL, SHUFFLED: folder / SHUFFLED},
    )  # fmt: skip
    return {name: score.value for name, score in evaluate([Nearest()], inputs).values.items()}


def test_own_pictures_are_found_and_shuffled_ones_are_not(tmp_path):
    data = Shapes(16, "val", val_images=N, fields=["caption"], cached=False)
    source, reference = HeldOut(data, ("caption",), 0), np.stack([data[i]["image"] for i in range(N)])
    true = source.images(list(range(N))).numpy()
    noisy = np.clip(true + np.random.default_rng(0).normal(0, 12, true.shape), 0, 255).astype(np.uint8)
    noisy[:3] = true[[3, 4, 5]]  # three of another condition
    order = shuffle(N, 0)
    found = scored(tmp_path, noisy, true[order], reference, source)
    assert found["nearest"] == (N - 3) / N and found["nearest_chance"] == pytest.approx(1 / N)
    assert found["nearest_shuffled"] == (order == np.arange(N)).mean() and found["nearest_null"] <= 2 / N
    with pytest.raises(ConfigError, match=r"not there. Use data.overfit=true"):
        scored(tmp_path, noisy, noisy, reference[1:], source)


def test_distances_are_mean_squares():
    one, other = np.random.default_rng(0).random((2, 5, 7))
    assert np.allclose(squares(one, other), ((one[:, None] - other[None]) ** 2).mean(axis=2))


def test_a_shuffle_hands_out_each_condition_once():
    data = Shapes(16, "val", val_images=N, fields=["caption"], cached=False)
    source = HeldOut(data, ("caption",), 0)
    mixed, order = Shuffled(source, shuffle(N, 1)), shuffle(N, 1)
    assert sorted(order) == list(range(N)) and (order != np.arange(N)).sum() > N / 2
    assert mixed.batch([2, 5])["caption"] == source.batch([int(order[2]), int(order[5])])["caption"]
    assert mixed.describe(2) == source.describe(int(order[2])) and mixed.record(3)["condition_of"] == order[:3].tolist()


@pytest.mark.slow
def test_the_layout_experiment_runs_whole_on_a_stand_in(tmp_path):
    coco(tmp_path / "c", splits=("train",), count=6)
    words = [
        "experiment=overfit_layout", "debug=tiny", f"data.root={tmp_path / 'c'}", "data.resolution=16", f"store={tmp_path / 'store'}",
        "data.images=train2017", "data.instances=annotations/instances_train2017.json", "data.segmentation=annotations/panoptic_train2017",
        "data.captions=annotations/captions_train2017.json", "ae=pca_f4", "ae.network.c=3", "ae.network.window=1",
        "ldm.fit.images=32", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "ldm.fit.cooldown=0", "sampler.steps=2",
        "eval.extractor.width=8", "eval.extractor_fit.images=32", "eval.samples=6", "eval.batch_size=4", "eval.reference.images=null",
        "eval.reconstructions=6", "runtime.threads=1",
    ]  # fmt: skip
    composed = load(words)
    execute(composed, "python src/train.py experiment=overfit_layout")
    plan = prepare(composed)
    scores = json.loads((plan.store.folder(plan.address("scores")) / "scores.json").read_text())["scores"]
    assert set(scores) == {"nearest", "nearest_shuffled", "nearest_null", "nearest_chance"}
    assert scores["nearest_chance"]["value"] == pytest.approx(1 / 6)
    record = json.loads((plan.store.folder(plan.address("shuffled_samples")) / "conditions.json").read_text())
    assert sorted(record["condition_of"]) == list(range(6))
