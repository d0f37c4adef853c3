"""Whole runs of each spatial conditioning: trained, sampled, scored beside its trivial answers, on the page; then all of them as one
condition: killed and resumed, and by two processes."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from option_words import replacing
from ranks import finished, killed, started, train
from safetensors.torch import load_file

from ldmlab.config.compose import load
from ldmlab.data.batches import to_uint8
from ldmlab.errors import UserError
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import execute, prepare
from ldmlab.reports.publish import headline, make_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = [
    "debug=tiny", "ae=pca_f4", "data.resolution=16", "data.train_images=48", "data.val_images=16", "data.cached=false",
    "data.fields=[label,segmentation,depth]", "ldm.fit.images=32", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "sampler.steps=2",
    "eval.extractor_fit.images=32", "eval.extractor.width=8", "segmenter.fit.images=32", "eval.samples=10", "eval.batch_size=4",
    "eval.reference.images=16", "eval.reconstructions=8", "runtime.threads=1",
]  # fmt: skip
TASKS = {
    "semantic": ("miou", {"background", "real"}, (16, 16)), "depth": ("depth_correlation", {"mean", "real"}, (16, 16)),
    "superres": ("superres_psnr", {"bicubic", "regression"}, (4, 4)), "inpaint": ("inpainting_fid", {"mean", "patch"}, (16, 16)),
}  # fmt: skip


def words_of(store: Path, *words: str) -> list[str]:
    return replacing([*TINY, f"store={store}"], words)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store: the tasks share data, extractor, first stage, latents and segmenter."""
    return tmp_path_factory.mktemp("tasks")


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def result(plan: Plan, stage: str) -> Path:
    return plan.store.folder(plan.address(stage))


@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_is_trained_sampled_scored_and_shown(task: str, store: Path) -> None:
    score, beside, pictured = TASKS[task]
    metric = score.rpartition("_")[0] if task in ("superres", "inpaint") else score
    composed = load(words_of(store, f"cond={task}", f"eval.metrics=[fid,{metric}]"))
    with pytest.raises(UserError, match="not trained yet"):
        execute(composed, "python src/score.py …", may_train=False)
    folder = execute(composed, f"python src/train.py cond={task}")
    assert folder is not None
    plan = prepare(composed)
    found = json.loads((result(plan, "scores") / "scores.json").read_text())
    rows = {score, f"{score}_null", *(f"{score}_{row}" for row in beside)}
    assert rows <= set(found["scores"]) and len({found["scores"][row]["value"] for row in rows}) > 1
    samples = np.load(result(plan, "samples") / "images.npy")
    assert (
        samples.shape == (10, 16, 16, 3) and np.load(result(plan, "null_samples") / "images.npy").shape == samples.shape
    )
    assert np.load(result(plan, "samples") / "conditions-pictures.npy").shape == (10, *pictured, 3)
    page = make_page(folder).read_text()
    assert "Beside the null condition and trivial answers" in page and "Left of each sample: its condition" in page
    assert (folder / "pictures" / "beside.png").is_file() and "   null condition " in headline(folder)
    if task == "inpaint":
        known_pixels_are_kept(plan, samples)


def known_pixels_are_kept(plan: Plan, samples: np.ndarray) -> None:
    source: Any = plan.resolved.conditions(10)
    batch = source.batch(list(range(10)))
    hole = plan.resolved.conditioner.mask(batch)[:, 0].numpy() > 0  # type: ignore[attr-defined]
    truth = to_uint8(batch["image"]).numpy()
    null = np.load(result(plan, "null_samples") / "images.npy")
    assert np.array_equal(samples[~hole], truth[~hole]) and np.array_equal(null[~hole], truth[~hole])
    assert not np.array_equal(samples[hole], truth[hole])


# ---- all of them as one condition ----------------------------------------------------------------------------------------

ALL = ["cond=[depth,inpaint,semantic,superres]", "until=samples", "eval=none", "runtime.log_seconds=1e-9"]


def command(store: Path, *words: str) -> list[str]:
    return [
        word
        for word in words_of(store, *ALL, *words)
        if not word.startswith(("eval.extractor", "eval.reference", "eval.recon"))
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("straight")
    execute(load(command(root)), "python src/train.py …")
    return root


def test_killed_and_resumed_it_is_bit_for_bit_the_same(straight: Path, tmp_path: Path) -> None:
    store, words = tmp_path / "store", ["runtime.checkpoint_seconds=1e-9"]  # a checkpoint at every step
    seen = lambda: list(store.glob("denoiser/*/checkpoints/0*"))  # noqa: E731
    code = killed(seen, 0.0, signal.SIGKILL, tmp_path / "log", command(store, *words))
    assert code == -signal.SIGKILL and not list(store.glob("denoiser/*/done.json"))
    execute(load([*command(store), *words]), "python src/train.py …")
    for name in ("denoiser/*/weights.safetensors", "denoiser/*/ema.safetensors", "samples/*/images.npy"):
        assert one(straight, name).read_bytes() == one(store, name).read_bytes()


def test_two_processes_are_one_run(straight: Path, tmp_path: Path) -> None:
    """Losses equal to float rounding, samples to one 8-bit level or so: masks and dropping follow the image, not the rank."""
    store, log = tmp_path / "store", tmp_path / "log"
    assert finished(started(2, train, command(store, "runtime.processes=2"), log)) == [0, 0], log.read_text()
    logs = [one(root, "denoiser/*/metrics.jsonl").read_text().splitlines() for root in (straight, store)]
    first, other = ([row["loss"] for row in map(json.loads, log) if row["split"] == "train"] for log in logs)
    assert len(first) == 4 and np.allclose(first, other, rtol=2e-4)
    images = [np.load(one(root, "samples/*/images.npy")).astype(int) for root in (straight, store)]
    assert np.abs(images[0] - images[1]).max() <= 3
    assert one(straight, "denoiser/*/").name == one(store, "denoiser/*/").name


def test_it_is_one_network_of_all_conditions(straight: Path) -> None:
    weights = load_file(one(straight, "denoiser/*/weights.safetensors"))
    (first,) = (value for name, value in weights.items() if name.endswith("input_blocks.0.0.weight"))
    assert first.shape[1] == 3 + 1 + 4 + 3 + 3  # latent; depth, masked latent and mask, semantic, small image
    assert "conditioner.parts.2.channel_mapper.weight" in weights
