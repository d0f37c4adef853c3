"""Every first stage of Table 8, and those beyond it, at debug=tiny: trains with its discriminator, validates, saves, loads."""

import json
import math
from pathlib import Path

import pytest
import torch
from option_words import replacing

from ldmlab import build
from ldmlab.config.compose import group_options, load
from ldmlab.interop import weights
from ldmlab.pipeline.export import export_first_stage as export
from ldmlab.pipeline.run import execute
from ldmlab.store.checkpoint import load_tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CELLS = [
    [f"ae={name}"] for name in group_options("ae") if name != "identity" and "pca" not in name and "quick" not in name
] + [
    ["ae=vq_f8", "ae/regulariser=fsq"],
    ["ae=vq_f4", "ae/regulariser=vq_ema"],
]
SMALL = [
    "debug=tiny", "until=autoencoder", "data.train_images=16", "data.val_images=8", "ae.network.width=8", "ae.fit.images=32",
    "ae.loss.disc_start=8", "ae.latent_scale.images=16", "eval.reconstructions=8", "eval.extractor_fit.images=64",
    "runtime.threads=1", "runtime.log_seconds=1e-9",
]  # fmt: skip


# of f = 32: fewer patches than c, so there is no linear comparison, whose decomposition takes 5 s
FEW = ["data.train_images=4"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table 8")


@pytest.mark.parametrize("words", CELLS, ids=lambda words: "-".join(w.partition("=")[2] for w in words))
def test_trains_validates_saves_loads_and_goes_out_and_in(words: list[str], store: Path, tmp_path: Path) -> None:
    codes = ["ae.regulariser.codes=64"] if "vq" in words[0] and "fsq" not in words[-1] else []
    few = FEW if "f32" in words[0] else []
    composed = load(replacing([*SMALL, *words, *codes, f"store={store}"], few))
    run = execute(composed, "test")
    assert run is not None
    stages = {s["stage"]: run / s["folder"] for s in json.loads((run / "run.json").read_text())["stages"]}
    rows = [json.loads(line) for line in (stages["autoencoder"] / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["split"] == "train"]
    adversarial = composed.cfg.ae.loss.discriminator is not None
    assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    assert (
        adversarial
        == any("discriminator_loss" in row for row in trained)
        == any("adaptive_weight" in row for row in trained)
    )
    if codes:
        assert "codebook_usage_window" in trained[-1]
    scores = json.loads((stages["reconstructions"] / "scores.json").read_text())
    assert scores["psnr"]["value"] > 5 and scores["rfid"]["value"] > 0
    ae = build.autoencoder(composed.cfg)
    untrained = {name: value.clone() for name, value in ae.state_dict().items()}
    ae.load_state_dict(load_tensors(stages["autoencoder"] / "autoencoder.safetensors"))
    assert not all(torch.equal(value, untrained[name]) for name, value in ae.state_dict().items())
    (file,), _ = export(composed, "compvis", tmp_path, "test")
    back = weights.read(file).tensors
    kept = {k: v for k, v in ae.state_dict().items() if k not in weights.OURS}
    assert weights.misfit(back, kept) is None and all(torch.equal(back[k], v) for k, v in kept.items())
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert ae.eval().decode(ae.encode(image)).shape == image.shape
