"""runtime.shard=true: four ranks are one process to rounding, whatever is killed and however many go on; what is held and sent."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from option_words import replacing
from ranks import finished, started, train
from safetensors.torch import load_file

from ldmlab.config.compose import load
from ldmlab.pipeline.per_rank import training_of
from ldmlab.pipeline.run import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORDS = [
    "debug=tiny", "ae=identity", "eval=none", "until=denoiser", "data.resolution=16", "data.train_images=64", "data.val_images=16",
    "ldm.fit.images=48", "ldm.fit.batch_size=16", "ldm.fit.warmup=0", "ldm.fit.lr=1e-3", "ldm.fit.ema=0.99", "runtime.threads=1",
    "runtime.log_seconds=1e-9",
]  # fmt: skip
DIT = [
    "ldm=dit_xl_2", "cond=class_vector", "ldm.network.checkpointing=true", "ldm.fit.clip=0.5", "ldm.power_ema=[0.1]",
    "ldm.fit.snapshots=[32]", "runtime.micro_batch=2",
]  # fmt: skip
TEXT = [
    "ldm=txt2img_f8",
    "cond=text",
    "data.fields=[label,caption]",
    "cond.conditioner.vocab_size=300",
    "ldm.fit.optimizer=muon",
    "ldm.fit.images=32",
    "ldm.network.multipliers=[1]",  # the blocks of a level, without a second one's
    "ldm.network.attention_factors=[1]",
]
ROUNDS = {"c10d._allgather_base_.default": 1, "c10d._reduce_scatter_base_.default": 1, "c10d.allreduce_.default": 2,
          "_c10d_functional.all_gather_into_tensor.default": 1}  # fmt: skip
"""Collectives by their operators, and how often each rank sends their larger side, but for its own part, in rings."""


def run(store: Path, ranks: int, *words: str, killed_in_save: int | None = None, measured: bool = False) -> str:
    """What the command printed; it ends well, or is killed where it is asked to be. measured: in <store>.json."""
    log, file = store.with_suffix(".log"), store.with_suffix(".json") if measured else None
    typed = replacing([*WORDS, f"store={store}", f"runtime.processes={ranks}"], words)
    codes = finished(started(ranks, train, typed, log, killed_in_save, file))
    expected = [0] * ranks if killed_in_save is None else [-9] * ranks
    assert codes == expected or (killed_in_save is not None and -9 in codes), f"exit {codes}\n{log.read_text()}"
    return log.read_text()


def beside(store: Path, other: Path) -> Path:
    """Another store with all that the denoiser of the first one stands on."""
    return shutil.copytree(store, other, ignore=shutil.ignore_patterns("denoiser", "runs"))


def trained(store: Path) -> Path:
    (found,) = [seal.parent for seal in store.glob("denoiser/*/done.json")]
    return found


def rows(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trained(store) / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path) -> None:
    """The same files with the same names in them; numbers equal to rounding.

    A bias before a norm has no gradient but rounding, which Adam's step makes large. So weights are compared as vectors: they
    are apart by less than a thousandth of the longest way that AdamW can go in so many steps.
    """
    a, b = trained(one), trained(other)
    assert a.name == b.name
    files, twins = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (a, b))
    assert files == twins
    steps = rows(one)[-1]["images"] // 16
    for name in (f for f in files if f.endswith(".safetensors")):
        mine, theirs = load_file(a / name), load_file(b / name)
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
        apart = sum(float((theirs[k] - v).square().sum()) for k, v in mine.items()) ** 0.5
        assert apart < 1e-3 * 1e-3 * steps * sum(v.numel() for v in mine.values()) ** 0.5, name
    for name in (f for f in files if f.endswith("optimizers.pt")):
        mine, theirs = torch.load(a / name), torch.load(b / name)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5)
        values = [v for player in theirs.values() for state in player["state"].values() for v in state.values()]
        assert all(type(v) is torch.Tensor and v.untyped_storage().nbytes() == v.nbytes for v in values)  # no padding
    for mine, theirs in zip(rows(one), rows(other), strict=True):
        assert mine.keys() == theirs.keys() and (mine["images"], mine["split"]) == (theirs["images"], theirs["split"])
        for key in (k for k in mine if "loss" in k or "norm" in k):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4), (key, mine["images"])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer, trained by one process."""
    store = tmp_path_factory.mktemp("one") / "store"
    run(store, 1, *DIT)
    return store


def assert_counted(store: Path, ranks: int, *words: str) -> None:
    """What rank 0 held, and what its first step's collectives moved, are what a dry run says."""
    found = json.loads(store.with_suffix(".json").read_text())
    typed = replacing([*WORDS, f"store={store}", f"runtime.processes={ranks}"], words)
    counted = training_of(prepare(load(typed)).resolved, ranks, activations=False)
    held = counted.split() if "runtime.shard=true" in words else counted.replicated()
    moved = {name: sum(size for each, size in found["sent"] if each.endswith(name)) for name in ROUNDS}
    sent = sum(size * ROUNDS[name] for name, size in moved.items()) * (ranks - 1) // ranks
    found = {name: found[name] for name in ("weights", "gradients", "optimizer", "averages")} | {"sent": sent}
    assert found == {name: getattr(held, name) for name in found}


def test_four_ranks_are_one_process(one: Path, tmp_path: Path) -> None:
    """DiT with AdamW: accumulation, clipping, recomputation, two averages, a snapshot with its state."""
    words, four = [*DIT, "runtime.shard=true"], beside(one, tmp_path / "four")
    run(four, 4, *words, measured=True)
    assert_same(one, four)
    assert_counted(four, 4, *words)


def test_text_to_image_with_muon(tmp_path: Path) -> None:
    """A UNet and the text transformer that learns along and is called twice in a step."""
    run(tmp_path / "one", 1, *TEXT)
    four = beside(tmp_path / "one", tmp_path / "four")
    run(four, 4, *TEXT, "runtime.shard=true", measured=True)
    assert_same(tmp_path / "one", four)
    assert_counted(four, 4, *TEXT, "runtime.shard=true")


def test_killed_and_taken_on_by_fewer(one: Path, tmp_path: Path) -> None:
    """kill -9 within a checkpoint: 4 ranks, then 2, then 1; a damaged part is named by all and the checkpoint before is used."""
    store = beside(one, tmp_path / "fewer")
    words = [*DIT, "runtime.shard=true", "runtime.checkpoint_seconds=1e-9"]  # a checkpoint at each step
    run(store, 4, *words, killed_in_save=3)
    (folder,) = store.glob("denoiser/*/checkpoints")
    assert sorted(p.name for p in folder.glob("0*")) == ["000000000016", "000000000032"]
    assert len(list((folder / "000000000032").glob("__*.distcp"))) == 4
    damaged = folder / "000000000032" / "__3_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    said = run(store, 2, *words, killed_in_save=2)
    assert said.count("is damaged") == 1 and str(damaged) in said
    assert sorted(p.name for p in folder.glob("0*")) == ["000000000016", "000000000032"]
    run(store, 1, *words)
    assert_same(one, store)
    assert not list(store.glob("denoiser/*/checkpoints/*"))


def test_a_longer_training_goes_on_in_parts(one: Path, tmp_path: Path) -> None:
    """What one process has kept is taken over by ranks that hold parts, with its optimiser's state."""
    for name, ranks, words in (("whole", 1, []), ("parts", 2, ["runtime.shard=true"])):
        shutil.copytree(one, tmp_path / name)
        (before,) = (tmp_path / name).glob("denoiser/*")
        said = run(tmp_path / name, ranks, *DIT, *words, "ldm.fit.images=64")
        assert f"continues {before.name.rpartition('-')[2]} from 48 images" in said
        shutil.rmtree(before)
    assert_same(tmp_path / "whole", tmp_path / "parts")
