"""Whole commands: train a small model, export it in both layouts, import each; the samples are the same."""

from pathlib import Path

import numpy as np
import pytest
from option_words import replacing
from test_commands_interop import TINY, only, run

from ldmlab.config.compose import load
from ldmlab.errors import UserError
from ldmlab.pipeline.export import export_denoiser as export

TRAINING = [
    "ae.fit.images=16", "ae.fit.warmup=0", "eval.samples=8", "eval.reference.images=16", "eval.metrics=[fid]", "sampler.guidance=2",
]  # fmt: skip
RESULT = "samples/*/images.npy"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_export_and_import_give_the_same_samples(tmp_path: Path) -> None:
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))
    composed = load(replacing(TINY, [*TRAINING, f"store={one}"]))
    with pytest.raises(UserError, match=r"is not in the store. Make it first: python src/train.py ae=x until=denoiser"):
        export(composed, "compvis", out, "python src/export.py ae=x part=ldm to=compvis out=y")
    run("train", *TRAINING, f"store={one}", "until=samples")
    own = np.load(only(one, RESULT))
    assert own.std() > 5  # pictures, not a constant

    text = run("export", *TRAINING, f"store={one}", "part=ldm", "to=compvis", f"out={out / 'official'}")
    assert "model.ckpt" in text and "samples with the raw conditioner" in text
    files, notes = export(composed, "diffusers", out / "diffusers", "")
    assert out / "diffusers" / "unet" / "config.json" in files and any(
        "row 10 means no class" in note for note in notes
    )

    model = out / "official" / "model.ckpt"  # one file for both stages, in a store that knows nothing of them
    words = [*TRAINING, f"ae.weights={model}", "ae.latent_scale.mode=stored"]
    text = run("train", *words, f"ldm.weights={model}", f"store={two}")
    assert "imported weights" in text and text.count("imported from model.ckpt") == 2  # to the scores and the report
    assert (np.load(only(two, RESULT)) == own).all()
    assert only(two, "scores/*/scores.json") and not list(two.glob("latents/*"))
    assert not list(two.glob("denoiser/*/metrics.jsonl")) and only(two, "denoiser/*/imported.json")

    run(
        "sample", *words, f"ldm.weights={out / 'diffusers'}", f"store={two}", "eval.weights=raw", "n=8"
    )  # trains nothing
    assert len(list(two.glob(RESULT))) == 2
    for found in two.glob(RESULT):
        assert np.abs(np.load(found).astype(int) - own).max() <= 1  # float32 sums in another order, then 8 bits
