"""compare=tiles: rows for the whole image and for tiles, on a real file of weights."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from ldmlab import build
from ldmlab.bench.command import run
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError

WORDS = [
    "ae=kl_f4", "ae.network.width=8", "ae.network.blocks=1", "data.resolution=64", "data.val_images=4", "data.train_images=4",
    "data.cached=false", "compare=tiles", "runtime.threads=1", "bench.batch_size=1",
]  # fmt: skip


def test_smaller_tiles_err_more_and_hold_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "autoencoder.safetensors"
    save_file(build.autoencoder(load(WORDS).cfg).state_dict(), weights)
    report = run(load([*WORDS, f"ae.weights={weights}", f"store={tmp_path}"]).cfg, "python src/bench.py compare=tiles")
    whole, half, quarter = report.rows
    assert [row["tile"] for row in report.rows] == ["none", "32", "16"]
    assert whole["psnr_to_whole"] is None and half["psnr_to_whole"] > quarter["psnr_to_whole"] > 10
    assert whole["decode_peak_bytes"] > half["decode_peak_bytes"] > quarter["decode_peak_bytes"]
    assert "PSNR to the untiled" in capsys.readouterr().out


def test_it_wants_trained_weights() -> None:
    with pytest.raises(ConfigError, match=r"compare=tiles needs a trained first stage.*ae\.weights"):
        run(load(WORDS).cfg, "python src/bench.py compare=tiles")
