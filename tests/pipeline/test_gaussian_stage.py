"""ldm=gaussian through the stages of a run: a stopped pass goes on exactly, samples follow the fit and no sampler, refusals."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from option_words import replacing

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline import gaussian
from ldmlab.pipeline.run import execute, prepare
from ldmlab.store.checkpoint import load_tensors
from ldmlab.training.loop import Stopped

WORDS = [
    "debug=tiny", "data.resolution=32", "data.train_images=300", "data.val_images=16", "data.flip=true", "ae=pca_f8", "ldm=gaussian",
    "runtime.threads=1", "until=denoiser", "eval=none",
]  # fmt: skip


def run(store: Path, *other: str) -> Path:
    words = replacing(WORDS, [*other, f"store={store}"])
    folder = execute(load(words), " ".join(words))
    assert folder is not None
    return folder


def test_a_stopped_pass_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "unbroken")
    (unbroken,) = tmp_path.glob("unbroken/denoiser/*")
    seen: list[int] = []
    posteriors = gaussian.posteriors

    def until_stopped(*args: Any) -> Iterator[Any]:
        for n, found in enumerate(posteriors(*args)):
            if n == 1:
                signal.raise_signal(signal.SIGTERM)
            seen.append(found[0].rows[0])
            yield found

    monkeypatch.setattr(gaussian, "posteriors", until_stopped)
    with pytest.raises(Stopped, match="SIGTERM at 256 images"):
        run(tmp_path / "stopped")
    assert seen == [0, 128]
    seen.clear()
    run(tmp_path / "stopped")
    assert seen == [256]  # not from the beginning
    (stopped,) = tmp_path.glob("stopped/denoiser/*")
    assert (stopped / "weights.safetensors").read_bytes() == (unbroken / "weights.safetensors").read_bytes()
    facts = json.loads((stopped / "gaussian.json").read_text())
    assert facts["images"] == 600 and facts["classes"] == 10  # both flips
    assert not list(stopped.glob("checkpoints/*"))
    mean_KD = load_tensors(stopped / "weights.safetensors")["mean_KD"]
    assert mean_KD.shape == (10, 64) and float(mean_KD.std(dim=0).mean()) > 0.05  # each class has its own


def test_the_fit_is_that_of_the_latents(tmp_path: Path) -> None:
    """Of all cached ones, with a mean for all: numpy's own mean and covariance."""
    run(tmp_path, "cond=none", "data.flip=false")
    (fit,), (latents,) = tmp_path.glob("denoiser/*/weights.safetensors"), tmp_path.glob("latents/*/moments-00000.npy")
    (first_stage,) = tmp_path.glob("autoencoder/*/autoencoder.safetensors")
    found, scaling = load_tensors(fit), load_tensors(first_stage)
    z = np.load(latents).astype(np.float64)[:, 0]
    z = ((z - scaling["shift"].numpy()) * scaling["scale"].numpy()).reshape(len(z), -1)
    basis, variance = found["basis_DD"].double(), found["variance_D"].double()
    np.testing.assert_allclose(found["mean_KD"][0], z.mean(0), atol=1e-5)
    np.testing.assert_allclose(basis.T * variance @ basis, np.cov(z.T, ddof=0), atol=1e-5)


def test_samples_scores_and_page_without_a_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ldmlab.reports.publish import make_page

    small = ["until=scores", "eval=shapes", "eval.metrics=[fid]", "data.flip=false"]
    folder = run(tmp_path, *small)
    (scores,) = tmp_path.glob("scores/*/scores.json")
    card = json.loads(scores.read_text())["card"]
    assert (card["sampler"], card["steps"], card["weights"], card["eta"]) == ("closed_form", None, None, None)
    html = make_page(folder).read_text()
    assert "drawn in closed form" in html and "Gaussian of 64 numbers, 10 means" in html
    run(
        tmp_path, *small, "sampler=heun", "sampler.steps=3", "eval.weights=raw", "objective=v_cosine"
    )  # the same samples
    assert len(list(tmp_path.glob("samples/*/images.npy"))) == 1 and len(list(tmp_path.glob("denoiser/*"))) == 1
    (images,) = (np.load(file) for file in tmp_path.glob("samples/*/images.npy"))
    assert images.shape == (64, 32, 32, 3) and images.std() > 10


def test_conditions_are_classes_or_none(tmp_path: Path) -> None:
    def denoiser(*other: str) -> str:
        return prepare(load(replacing(WORDS, [*other, f"store={tmp_path}"]))).named("denoiser").address.id

    assert denoiser() == denoiser("cond.conditioner.dim=64") == denoiser("cond=class_vector")
    assert denoiser() != denoiser("cond=none") and denoiser() != denoiser("ae=pca_f4")
    assert prepare(load(replacing(WORDS, ["ae=identity", f"store={tmp_path}"]))).has("latents") is False


@pytest.mark.parametrize(
    "words,message",
    [
        ("sampler.guidance=2", r"sampler\.guidance=2\.0 acts on the steps of a sampler, and ldm=gaussian takes .* Set sampler\.guidance=1"),
        ("guidance=classifier", r"guidance=classifier acts on the steps .* Set guidance=none"),
        ("eval.at=[0.5,1.0]", r"eval\.at=\[0\.5, 1\.0\]: ldm=gaussian has no snapshots\. Set eval\.at=\[1\.0\]"),
        ("ldm.budget.parameters=1000", r"ldm\.budget\.parameters chooses a width"),
        ("ldm.budget.fair=flops", r"ldm\.budget\.fair chooses a width, .* Set ldm\.budget\.fair=null"),
        ("tune=lr", r"tune=lr searches a learning rate, and ldm=gaussian is fitted in closed form"),
        ("eval.cooldown=0.25", r"eval\.cooldown=0\.25 trains a snapshot on, and ldm=gaussian has none"),
        ("ldm.power_ema=[0.1]", r"ldm=gaussian has none\. Set ldm\.power_ema=\[\]"),
        ("cond=segmentation_map data.fields=[label,segmentation]", r"cond conditions on segmentation\. Use cond=class_label, or cond=none"),
        ("ae=identity data.resolution=64", r"3x64x64 = 12288 numbers, and a full covariance is fitted to at most 8192"),
    ],
)  # fmt: skip
def test_refusals(words: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(load(replacing(WORDS, [*words.split(), f"store={tmp_path}"])))


def test_refused_as_a_weak_model(tmp_path: Path) -> None:
    folder = run(tmp_path, "data.flip=false", "data.train_images=128")
    words = [
        "ldm=unet_tiny",
        "guidance=autoguidance",
        f"guidance.auto.run={folder.name}",
        "data.flip=false",
        "data.train_images=128",
    ]
    with pytest.raises(ConfigError, match="is a Gaussian in closed form, which guides nothing"):
        prepare(load(replacing(WORDS, [*words, "until=samples", f"store={tmp_path}"])))
