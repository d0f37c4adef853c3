"""ldm.start: training that begins with another denoiser's weights."""

from pathlib import Path

import pytest
import torch

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError, WeightsError
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.run import prepare
from ldmlab.store.checkpoint import load_tensors

BASE = [
    "debug=tiny", "ae=identity", "cond=none", "eval=none", "data.resolution=16", "data.train_images=16", "data.val_images=4",
    "data.cached=false", "until=denoiser", "runtime.threads=1", "ldm.fit.images=8", "ldm.fit.batch_size=4",
    "ldm.network.multipliers=[1]", "ldm.network.attention_factors=[1]",
]  # fmt: skip


def made(root: Path, *words: str) -> Path:
    typed = {word.partition("=")[0] for word in words}
    rest = [word for word in BASE if word.partition("=")[0] not in typed]
    plan = prepare(load([*rest, f"store={root}", *words]))
    return plan.stage(DenoiserStage).make(Context(plan.resolved.cfg, plan, make_accelerator("cpu")))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished denoiser's folder; its rate is so high that it is far from where it began."""
    return made(tmp_path_factory.mktemp("first"), "ldm.fit.lr=0.05")


def test_training_begins_with_these_weights(first: Path, tmp_path: Path) -> None:
    """At a rate of almost nothing it ends with them, from another seed's initial weights, and so does its average."""
    folder = made(
        tmp_path, f"ldm.start={first}", "ldm.fit.lr=1e-12", "ldm.seed=9", "ldm.fit.weight_decay=0", "ldm.fit.warmup=0"
    )
    wanted = load_tensors(first / "weights.safetensors")
    for file in ("weights", "ema"):
        found = load_tensors(folder / f"{file}.safetensors")
        assert found.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=0)


def test_the_start_is_part_of_the_id(first: Path, tmp_path: Path) -> None:
    """By its contents, wherever they lie; without one the id is what it was before there was this option."""

    def id_of(*words: str) -> str:
        return prepare(load([*BASE, f"store={tmp_path}", *words])).address("denoiser").id

    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((first / "weights.safetensors").read_bytes())
    assert id_of() == id_of("ldm.start=null") != id_of(f"ldm.start={copy}")
    again = tmp_path / "again.safetensors"
    again.write_bytes(copy.read_bytes())
    assert id_of(f"ldm.start={copy}") == id_of(f"ldm.start={again}")


def test_what_cannot_be_begun_with_is_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"ldm\.start=nowhere: no such file"):
        made(tmp_path, "ldm.start=nowhere")
    with pytest.raises(WeightsError, match="does not fit"):
        made(tmp_path, f"ldm.start={first}", "ldm.network.width=64")
    with pytest.raises(ConfigError, match=r"ldm\.start has nothing to begin"):
        made(tmp_path, f"ldm.start={first}", f"ldm.weights={first}")
