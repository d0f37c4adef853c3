"""check=determinism: what it calls equal, close and different; a training stopped by a signal ends as one that was not."""

from pathlib import Path

import pytest
import torch

from ldmlab.config.compose import load
from ldmlab.pipeline.check_determinism import STEPS, alike, computed, evaluation, judged, logged, resumed, shortened

A = {"denoiser first": torch.ones(4), "denoiser second": torch.arange(4.0), "denoiser third": torch.ones(2)}


def test_equal_close_and_different_tensors() -> None:
    assert judged(A, dict(A), 0.0) == ("bit-equal: 3 tensors", True)
    close = A | {"denoiser second": A["denoiser second"] * (1 + 1e-5)}
    words, fits = judged(A, close, 1e-3)
    assert fits and words == "within 0.001; largest: denoiser second (1e-05); 1 of 3 tensors differ"
    far = close | {"denoiser third": A["denoiser third"] + 1}
    words, fits = judged(A, far, 1e-3)
    assert not fits and words.startswith("first beyond 0.001: denoiser third (1);")
    assert not judged(A, close, 0.0)[1]  # a resumed training must have the same bits
    lost = A | {"denoiser first": torch.full((4,), torch.nan)}
    assert not judged(A, lost, 1e9)[1]


@pytest.mark.slow
def test_a_stopped_training_and_other_batches_of_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "debug=tiny", "data.resolution=32", "data.train_images=32", "data.val_images=4", "ae=kl_f4", "ae.network.multipliers=[1,1,1]",
        "ldm.network.multipliers=[1]", "ldm.network.attention_factors=[]", "ae.fit.batch_size=4", "ldm.fit.batch_size=4",
        "ae.latent_scale.images=8", "ae.loss.discriminator=null", "runtime.threads=1", "eval=none", "latents.cache=never",
    ]  # fmt: skip
    short = shortened(load(words))
    places = {name: tmp_path / name for name in ("straight", "resumed", "halves")}
    straight, images = computed(short, places["straight"])
    again = resumed(short, places["resumed"])
    said = capsys.readouterr().out
    assert (
        said.count(f"SIGTERM at {4 * STEPS} images; checkpoint written") == 2
    )  # of the first stage and of the denoiser
    assert judged(straight, again, 0.0) == (f"bit-equal: {len(straight)} tensors", True)
    numbers = logged(places["straight"])
    assert {
        f"{stage} after {4 * n} images"
        for stage in ("autoencoder loss", "denoiser gradient_norm")
        for n in range(1, 2 * STEPS + 1)
    } <= set(numbers)
    stores = places["straight"], places["resumed"]
    assert alike(straight, again, stores, 1e-3) == (
        f"bit-equal: {len(numbers)} numbers; weights: bit-equal, {len(straight)}",
        True,
    )
    (log,) = places["resumed"].glob("denoiser/*/metrics.jsonl")
    log.write_text(log.read_text().replace('"gradient_norm": ', '"gradient_norm": 1'))
    words, fits = alike(straight, again | {"denoiser network.out.2.bias": torch.zeros(1)}, stores, 1e-3)
    assert not fits and words.startswith("first beyond 0.001: denoiser gradient_norm after 4 images (")
    assert words.endswith(f"weights: first that differs: denoiser network.out.2.bias; 1 of {len(straight)}")
    assert evaluation(short, images, places).fits
