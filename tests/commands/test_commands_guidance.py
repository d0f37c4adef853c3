"""Whole commands with guidance=…: a snapshot, another run, a classifier, a picture; all of them at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_commands import run, sealed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SNAPSHOT = "ldm.fit.snapshots=[0.5]"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished denoiser with a snapshot, and the run of a smaller one on the same latents."""
    root = tmp_path_factory.mktemp("guided")
    run("train", root, SNAPSHOT, "until=samples")
    run("train", root, SNAPSHOT, "until=denoiser", "ldm.fit.images=32", "ldm.network.dropout=0.1")
    return root


def newest(store: Path, stage: str) -> Path:
    return max(store.glob(f"{stage}/*/done.json"), key=lambda path: path.stat().st_mtime_ns).parent


def weak_run(store: Path) -> str:
    records = [json.loads(p.read_text()) for p in store.glob("runs/*/run.json")]
    return next(r["id"] for r in records if r["config"]["until"] == "denoiser")


def test_autoguidance_by_a_snapshot_and_by_a_run(store: Path) -> None:
    before = {p.parent for p in store.glob("denoiser/*/done.json")}
    run("score", store, SNAPSHOT, "until=samples", "guidance=autoguidance", "guidance.auto.snapshot=0.5")
    first = newest(store, "samples")
    text = run(
        "score", store, SNAPSHOT, "guidance=autoguidance", f"guidance.auto.run={weak_run(store)}", "eval.weights=raw"
    )
    second = newest(store, "samples")
    assert first != second and {p.parent for p in store.glob("denoiser/*/done.json")} == before
    assert "8 evaluations" in text and "auto2" in text
    card = json.loads((newest(store, "scores") / "scores.json").read_text())["card"]
    weak = card["guidance"]["auto"]
    assert weak["scale"] == 2.0 and weak["images"] == 32 and card["evaluations"] == 8
    assert any(folder.name.endswith(weak["weak"]) for folder in before)


def test_everything_at_once_and_each_in_the_card(store: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(picture)
    words = ["guidance=[classifier,autoguidance,image]", "guidance.auto.snapshot=0.5", f"guidance.image.file={picture}", SNAPSHOT,
             "guidance.image.scale=0.01", "sampler.guidance=2", "sampler.guidance_interval=[0.3,5]", "eval.samples=12",
             "guidance.classifier.fit.images=32"]  # fmt: skip
    text = run("score", store, *words, code=1)
    assert "the noisy_classifier" in text and "trains nothing" in text and "src/train.py" in text
    text = run("train", store, *words)
    assert "auto2·classifier1·image0.01" in text and "of 16 val images classified correctly" in text
    found = json.loads((sealed(store, "noisy_classifier") / "scores.json").read_text())
    assert found["images"] == 16 and {"accuracy", "accuracy_t0", "accuracy_t3", "chance"} <= set(found)
    card = json.loads((newest(store, "scores") / "scores.json").read_text())["card"]
    assert card["guidance"]["image"]["transform"]["factor"] == 2
    assert sealed(store, "noisy_classifier").name.endswith(card["guidance"]["classifier"]["classifier"])


def test_an_image_pulls_samples_towards_it(store: Path, tmp_path: Path) -> None:
    """The same seeds with and without: nearer to the picture."""
    picture = tmp_path / "grey.png"
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(picture)
    none = "guidance:\n  auto: null\n  classifier: null\n  image: null"
    (plain,) = [p for p in store.glob("samples/*/config.yaml") if none in p.read_text()]
    run(
        "score",
        store,
        SNAPSHOT,
        "until=samples",
        "guidance=image",
        f"guidance.image.file={picture}",
        "guidance.image.scale=0.05",
    )
    before, after = (
        np.abs(np.load(folder / "images.npy").astype(float) - 200).mean()
        for folder in (plain.parent, newest(store, "samples"))
    )
    assert after < before - 0.5
