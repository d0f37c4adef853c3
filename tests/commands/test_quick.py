"""Linear and quick first stages through the whole command: made, found again, resumed, on two processes, refused by other formats."""

import json
from pathlib import Path

import pytest
import torch
from ranks import finished, started, train
from test_commands import command, run, sealed

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.errors import WeightsError
from ldmlab.pipeline.export import export_first_stage as export
from ldmlab.pipeline.run import execute
from ldmlab.store.checkpoint import load_tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = [
    "debug=tiny", "until=autoencoder", "data.resolution=32", "data.train_images=64", "data.val_images=16", "ae.network.width=8",
    "ae.fit.images=48", "ae.fit.warmup=0", "ae.fit.cooldown=0", "ae.latent_scale.images=32", "eval.reconstructions=16",
    "eval.extractor_fit.images=64", "runtime.threads=1", "runtime.log_seconds=1e-9",
]  # fmt: skip
CELLS = [
    ["ae=pca_f2"], ["ae=pca_f8", "ae.network.c=6"], ["ae=pca_f4", "ae/regulariser=kl_quick"], ["ae=pca_f8", "ae/regulariser=fsq"],
    ["ae=kl_f2_quick"], ["ae=kl_f4_quick"], ["ae=kl_f16_quick"], ["ae=kl_f4_quick", "ae.network.path=average"],
    ["ae=kl_f8_quick", "ae/regulariser=fsq"], ["ae=vq_f4_quick", "ae.regulariser.codes=64"],
    ["ae=vq_f4_quick", "ae/regulariser=vq_ema_quick", "ae.regulariser.codes=64"],
]  # fmt: skip


def small(words: list[str]) -> list[str]:
    """A linear stage has no width and no budget."""
    return [word for word in SMALL if "pca" not in words[0] or not word.startswith(("ae.fit", "ae.network"))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quick")


@pytest.mark.parametrize("words", CELLS, ids=" ".join)
def test_made_scored_against_linear_and_loaded(words: list[str], store: Path, tmp_path: Path) -> None:
    composed = load([*small(words), *words, f"store={store}"])
    folder = execute(composed, "test")
    assert folder is not None
    stages = {s["stage"]: folder / s["folder"] for s in json.loads((folder / "run.json").read_text())["stages"]}
    scores, facts = (json.loads((stages["reconstructions"] / n).read_text()) for n in ("scores.json", "facts.json"))
    assert facts["gain_over_linear"] == pytest.approx(scores["psnr"]["value"] - facts["linear_psnr"])
    if words == CELLS[0]:
        assert facts["gain_over_linear"] == pytest.approx(0, abs=1e-6)
    ae = build.autoencoder(composed.cfg)
    ae.load_state_dict(load_tensors(stages["autoencoder"] / "autoencoder.safetensors"))
    std_C = torch.tensor(facts["latent_scale"])
    assert std_C.isfinite().all() and len(std_C) == ae.c
    with pytest.raises(WeightsError, match="kept in our own layout"):
        export(composed, "compvis", tmp_path, "test")


def test_two_processes_fit_the_same_linear_path(tmp_path: Path) -> None:
    words = ["until=autoencoder", "ae=kl_f4_quick", "ae.fit.precision=fp32", "ae.fit.cooldown=0"]
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    run("train", one, *words)
    typed = command("train", two, *words, "runtime.processes=2")[2:]
    assert finished(started(2, train, typed, log)) == [0, 0], log.read_text()
    tensors = [load_tensors(sealed(store, "autoencoder") / "autoencoder.safetensors") for store in (one, two)]
    for name, value in tensors[0].items():
        if ".linear." in name:
            assert torch.equal(value, tensors[1][name]), name
        else:
            torch.testing.assert_close(value, tensors[1][name], rtol=1e-3, atol=1e-4)
