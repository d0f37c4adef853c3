"""Whole commands, as typed: a run, its second call, kills at any moment, two processes, samples, scores, pages, sweeps."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from option_words import replacing
from ranks import killed
from whole_commands import run_here

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = [
    "debug=tiny", "ae=kl_f4_small", "data.resolution=32", "data.train_images=96", "data.val_images=16", "ae.network.width=32",
    "ae.fit.images=64", "ae.fit.warmup=0", "ldm.fit.images=64", "ldm.fit.batch_size=8", "ldm.fit.warmup=0",
    "eval.extractor_fit.images=64", "eval.samples=24", "eval.batch_size=8", "runtime.log_seconds=1e-9",
]  # fmt: skip


def command(script: str, store: Path, *words: str) -> list[str]:
    return [sys.executable, f"src/{script}.py", *replacing([*TINY, f"store={store}"], words)]


def environment(threads: int = 1) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}


def run(script: str, store: Path, *words: str, code: int = 0, own_process: bool = False) -> str:
    """What the command says. A sweep and several ranks are processes anyway, and handle signals; others run here unless told."""
    if own_process or "-m" in words or any(word.startswith("runtime.processes") for word in words):
        typed = command(script, store, *words)
        done = subprocess.run(typed, capture_output=True, text=True, cwd=ROOT, env=environment())
    else:
        done = run_here(script, command(script, store, *words)[2:])
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def sealed(store: Path, stage: str) -> Path:
    (found,) = [p.parent for p in store.glob(f"{stage}/*/done.json")]
    return found


def losses(store: Path, stage: str, key: str = "loss") -> list[float]:
    rows = map(json.loads, (sealed(store, stage) / "metrics.jsonl").read_text().splitlines())
    return [row[key] for row in rows if row["split"] == "train"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a folder whose name has a space."""
    store = tmp_path_factory.mktemp("a store")
    text = run("train", store, "eval.at=[0.5,1.0]", "ldm.fit.snapshots=[0.5]", own_process=True)
    assert "PSNR" in text and "FID" in text and "index.html" in text
    return store


def test_every_stage_is_sealed_with_config_and_card(whole: Path) -> None:
    for stage in ("extractor", "autoencoder", "reconstructions", "latents", "denoiser", "reference"):
        folder = sealed(whole, stage)
        assert {"config.yaml", "card.json", "done.json"} <= {p.name for p in folder.iterdir()}
        card, seal = (json.loads((folder / name).read_text()) for name in ("card.json", "done.json"))
        assert card["id"] == seal["id"] == folder.name.rpartition("-")[2] and card["versions"]["torch"]
        for name, entry in seal["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert not (folder / "checkpoints").exists()
    assert len(list(whole.glob("samples/*/done.json"))) == len(list(whole.glob("scores/*/done.json"))) == 2
    scores = json.loads(next(whole.glob("scores/*/scores.json")).read_text())
    assert set(scores["scores"]) == {"fid", "is", "kid", "precision", "recall", "label_agreement"}
    assert any("24 samples" in w for w in scores["warnings"])
    page = next(whole.glob("runs/*/index.html")).read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "data:image/png;base64" in page


def test_reconstructions_are_scored_by_the_metrics_own_functions(whole: Path) -> None:
    """R-IS from the kept logits; PSNR from the kept per-image numbers; what the page of a study needs is there."""
    from ldmlab.metrics.inception_score import inception_score

    folder = sealed(whole, "reconstructions")
    scores, facts = (json.loads((folder / name).read_text()) for name in ("scores.json", "facts.json"))
    with np.load(folder / "reconstructed.npz") as rebuilt, np.load(folder / "original.npz") as original:
        assert scores["ris"]["value"] == pytest.approx(inception_score(rebuilt["logits"]), rel=1e-9)
        assert facts["is_of_originals"]["value"] == pytest.approx(inception_score(original["logits"]), rel=1e-9)
    with np.load(folder / "per_image.npz") as each:
        assert scores["psnr"]["value"] == pytest.approx(each["psnr"].mean()) and len(each["index"]) == 16
    assert scores["bits_per_pixel"]["value"] == pytest.approx(scores["kl_bits"]["value"] * facts["c"] / facts["f"] ** 2)
    assert "speed" not in scores and facts["speed"]["encode"] > 0 and scores["perceptual"]["value"] > 0
    assert {"latent.npz", "shown.npz"} <= {p.name for p in folder.iterdir()}
    assert "latent_scale" not in scores["card"] and scores["card"]["data"].startswith("shapes-")


def test_second_call_trains_nothing_and_is_quick(whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and "runs" not in p.parts}
    began = time.monotonic()
    text = run("train", whole, "eval.at=[0.5,1.0]", "ldm.fit.snapshots=[0.5]", own_process=True)
    seconds = time.monotonic() - began
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert text.count(" done ") >= 8 and "will run" not in text
    assert seconds < 45  # 15 s on a quiet machine (docs/measurements.md); tests share two cores


def test_another_denoiser_finds_the_same_autoencoder(whole: Path) -> None:
    text = run("train", whole, "ldm.network.dropout=0.1", "until=denoiser", "dry_run=true")
    states = {line.split()[0]: line for line in text.splitlines() if line.startswith(" ") and len(line.split()) > 2}
    assert " done " in states["autoencoder"] and " done " in states["latents"] and "will run" in states["denoiser"]


def test_samples_are_the_image_s_own_at_any_batch_size(whole: Path) -> None:
    """Images 0 … 23 in batches of 8 (the run) and of 5: equal to one 8-bit level (the networks round differently by batch)."""
    words = ["eval.at=[1.0]", "ldm.fit.snapshots=[0.5]"]
    first = {p.parent.name for p in whole.glob("samples/*/done.json")}
    final = max(
        whole.glob("samples/*/images.npy"), key=lambda p: json.loads((p.parent / "card.json").read_text())["started"]
    )
    expected = np.load(final).astype(int)
    out = whole / "pictures out"
    run("sample", whole, *words, "n=24", "eval.batch_size=5", f"out={out}", "eval.seed=0")
    images = np.load(
        next(p for p in whole.glob("samples/*/images.npy") if p.parent.name in first and p == final)
    ).astype(int)
    assert np.abs(images - expected).max() == 0  # same request, same samples: nothing was drawn again
    assert len(list(out.glob("000*.png"))) == 24 and (out / "grid.png").exists()
    rows = json.loads((out / "samples.json").read_text())
    assert len({row["seed"] for row in rows}) == 24
    run(
        "sample",
        whole,
        *words,
        "n=5",
        "eval.batch_size=2",
        "cond.label=star",
        "sampler.steps=3",
        f"out={whole / 'stars'}",
    )
    stars = json.loads((whole / "stars" / "samples.json").read_text())
    assert [row["class"] for row in stars] == ["star"] * 5 and [r["seed"] for r in stars] == [
        r["seed"] for r in rows[:5]
    ]


def test_score_changes_the_protocol_without_training(whole: Path) -> None:
    before = (sealed(whole, "denoiser") / "done.json").stat().st_mtime_ns
    text = run("score", whole, "ldm.fit.snapshots=[0.5]", "sampler.steps=2", "sampler.guidance=1.5")
    assert "ddim2" in text and "w1.5" in text
    assert (sealed(whole, "denoiser") / "done.json").stat().st_mtime_ns == before
    text = run("score", whole, "ldm.fit.snapshots=[0.5]", "ldm.network.dropout=0.3", code=1)
    assert "trains nothing" in text and "src/train.py" in text


def test_report_joins_runs(whole: Path) -> None:
    text = run("report", whole, f"out={whole / 'report'}")
    assert re.search(r"\d runs?\n", text)
    page = (whole / "report" / "index.html").read_text()
    assert "steps" in page  # the unequal protocol field is named
    text = run("report", whole, "runs=nothing*", code=1)
    assert "no run in" in text


# ---- interruptions -------------------------------------------------------------------------------------------------------


def kill_when(store: Path, stage: str, seen: str, delay: float, number: int = signal.SIGKILL, *words: str) -> int:
    """Start the command and send a signal some time after a *new* `seen` appears in the stage's folder; its exit code."""
    before = set(store.glob(f"{stage}/*/{seen}"))
    store.mkdir(exist_ok=True)
    new = lambda: set(store.glob(f"{stage}/*/{seen}")) - before  # noqa: E731
    return killed(new, delay, number, store / "command.log", command("train", store, *words)[2:])


EVERY_STEP = "runtime.checkpoint_seconds=1e-9"  # a checkpoint at every step


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nobody interrupted."""
    store = tmp_path_factory.mktemp("straight")
    run("train", store, "until=denoiser", EVERY_STEP)
    return store


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_kill_9_at_any_moment_then_the_same_command_is_bit_identical(
    stage: str, straight: Path, tmp_path: Path
) -> None:
    """Killed three times. Then of the first stage the newest checkpoint is damaged: it is named, and the one before is used."""
    words = [f"until={stage}", EVERY_STEP]
    rng = random.Random(stage)
    store = tmp_path / "killed"
    if stage == "denoiser":  # what it stands on is there
        shutil.copytree(straight, store, ignore=shutil.ignore_patterns("denoiser", "runs"))
    most = 0.05 if stage == "autoencoder" else 0.2  # seconds: of the eight steps some are left for the last
    moments = [("checkpoints/0*", rng.uniform(0, most)), ("checkpoints/.writing-*", 0.0), ("checkpoints/0*", 0.0)]
    codes = [kill_when(store, stage, seen, delay, signal.SIGKILL, *words) for seen, delay in moments]
    assert codes.count(-signal.SIGKILL) >= 2  # (a fast machine may finish before the last)
    newest = ""
    if stage == "autoencoder":
        assert codes[-1] == -signal.SIGKILL
        generations = sorted(store.glob("autoencoder/*/checkpoints/0*"))
        assert len(generations) == 2
        newest, file = generations[-1].name, generations[-1] / "state.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    text = run("train", store, *words)
    assert ("is damaged" in text) == (stage == "autoencoder") and newest in text
    a, b = sealed(straight, stage), sealed(store, stage)
    assert a.name == b.name
    names = ["autoencoder", "weights"] if stage == "autoencoder" else ["weights", "ema"]
    for name in names:
        assert (a / f"{name}.safetensors").read_bytes() == (b / f"{name}.safetensors").read_bytes()
    assert losses(straight, stage) == losses(store, stage)


def test_sigterm_leaves_a_checkpoint_and_exit_code_85(tmp_path: Path) -> None:
    words = ["until=autoencoder", "ae.fit.images=100000"]
    assert kill_when(tmp_path, "autoencoder", "metrics.jsonl", 0.2, signal.SIGTERM, *words) == 85
    (generation,) = tmp_path.glob("autoencoder/*/checkpoints/0*")
    assert int(generation.name) > 0 and not list(tmp_path.glob("autoencoder/*/done.json"))
    text = run("train", tmp_path, *words, "dry_run=true")
    assert re.search(r"autoencoder\s+\w+\s+resumes at 0 %|autoencoder\s+\w+\s+resumes at \d+%", text)


def test_non_finite_loss_stops_with_step_term_and_checkpoint(tmp_path: Path) -> None:
    text = run("train", tmp_path, "until=autoencoder", "ae.fit.lr=100", "ae.fit.clip=null", code=1)
    assert re.search(r"error: autoencoder: '\w+' is (nan|inf) at step \d+ \(images [\d,]+\)\. .*checkpoint", text)
    assert "Traceback" not in text


# ---- processes -----------------------------------------------------------------------------------------------------------


def distance_moved(root: Path, stage: str, words: list[str]) -> tuple[float, float]:
    """How far the weights of one and of two processes lie apart, and how far one process moved them from their start.

    Element by element they cannot agree to rounding: Adam divides by the gradient's own size, so where a gradient is as small
    as rounding, its sign and with it a whole step of lr is rounding too. Such elements are few and their steps random, so
    the two runs stay close compared with the way they went together; gradients that are summed instead of averaged, lost on one
    rank or taken from the wrong images part them by as much as that way.
    """
    from safetensors.torch import load_file

    from ldmlab import build
    from ldmlab.config.compose import load
    from ldmlab.pipeline.run import prepare

    composed = load(replacing([*TINY, f"store={root / 'one'}"], words))
    ae = build.autoencoder(composed.cfg)
    start = ae if stage == "autoencoder" else build.denoiser(composed.cfg, ae, prepare(composed).resolved.data)
    begun = dict(start.named_parameters())
    one, two = (load_file(sealed(root / side, stage) / "weights.safetensors") for side in ("one", "two"))
    apart = sum(float((two[k] - one[k]).square().sum()) for k in begun) ** 0.5
    return apart, sum(float((one[k] - begun[k].detach()).square().sum()) for k in begun) ** 0.5


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    """Same ids; losses of 20 steps equal to float rounding; samples equal to one 8-bit level; by our ranks and by torchrun."""
    words = ["ae.fit.images=160", "ldm.fit.images=160", "ldm.fit.snapshots=[]"]
    run("train", tmp_path / "one", *words)
    text = run("train", tmp_path / "two", *words, "runtime.processes=2")
    assert len(re.findall(r"^ run \w{12} ", text, re.M)) == 1  # one voice
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, *command("train", tmp_path / "torchrun", *words, "until=denoiser")[1:]],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stage in ("autoencoder", "latents", "denoiser"):
        assert len({sealed(tmp_path / s, stage).name for s in ("one", "two", "torchrun")}) == 1
    for stage in ("autoencoder", "denoiser"):
        one, two, other = (np.array(losses(tmp_path / s, stage)) for s in ("one", "two", "torchrun"))
        assert len(one) == 20
        assert np.abs(two / one - 1).max() < 2e-4 and np.abs(other / one - 1).max() < 2e-4, (one, two)
    moved = {stage: distance_moved(tmp_path, stage, words) for stage in ("autoencoder", "denoiser")}
    assert all(apart < 0.05 * far for apart, far in moved.values()), moved
    for path in sorted((tmp_path / "one").glob("samples/*/images.npy")):
        twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert np.abs(np.load(path).astype(int) - np.load(twin).astype(int)).max() <= 3
    assert len(list(tmp_path.glob("two/scores/*/done.json"))) == 1


def test_sigterm_reaches_every_rank(tmp_path: Path) -> None:
    words = ["until=autoencoder", "ae.fit.images=100000", "runtime.processes=2"]
    assert kill_when(tmp_path, "autoencoder", "metrics.jsonl", 0.2, signal.SIGTERM, *words) == 85
    assert list(tmp_path.glob("autoencoder/*/checkpoints/0*"))


# ---- sweeps, caches, mirrors ---------------------------------------------------------------------------------------------


def test_sweep_goes_on_after_a_failure_and_names_it(tmp_path: Path) -> None:
    words = ["-m", "sweeps=first_stages", "ae.fit.lr=100,1e-3", "ae.fit.clip=null"]
    text = run("train", tmp_path, *words, code=1)
    assert "1 of 2 jobs failed" in text and "ae.fit.lr=100" in text
    assert len(list(tmp_path.glob("autoencoder/*/done.json"))) == 1
    assert "python src/report.py study=first_stages" in text
    (folder,) = tmp_path.glob("runs/*/run.json")
    assert json.loads(folder.read_text())["studies"] == ["first_stages"]
    text = run("report", tmp_path, "study=first_stages", f"out={tmp_path / 'page'}")
    page = (tmp_path / "page" / "index.html").read_text()
    assert " 1 run\n" in text and "Not finished" in page and "exit code 1" in page and "KL f=4" in page
    text = run("report", tmp_path, "study=other", code=1)
    assert "Studies there: first_stages" in text
    text = run("train", tmp_path, "-m", "ae=kl_f4_small,kl_f7", code=1)
    assert text.strip().splitlines()[-1].startswith("error: ae=kl_f7: no such option. Did you mean 'kl_f8'?")
    assert "Traceback" not in text and "Config search path" not in text


def test_pixel_space_reuses_data_and_extractor(whole: Path) -> None:
    before = {p.parent.name for p in whole.glob("extractor/*/done.json")}
    words = [w for w in TINY if not w.startswith("ae.")]  # nothing to train there
    done = run_here("train", replacing(words, ["ae=identity", "ldm.fit.images=16", f"store={whole}"]))
    assert done.returncode == 0, done.stderr
    assert {p.parent.name for p in whole.glob("extractor/*/done.json")} == before
    scores = [json.loads(p.read_text()) for p in whole.glob("reconstructions/identity-*/scores.json")]
    assert scores[0]["rfid"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_decoder_learns_on_and_every_denoiser_stays_valid(whole: Path) -> None:
    from safetensors.torch import load_file

    stages = ("latents", "denoiser", "reconstructions", "samples")
    before = {stage: {p.parent for p in whole.glob(f"{stage}/*/done.json")} for stage in stages}
    text = run(
        "train",
        whole,
        "eval.at=[0.5,1.0]",
        "ldm.fit.snapshots=[0.5]",
        "ae.train=decoder",
        "ae.decoder_fit.images=16",
        "ae.decoder_fit.batch_size=8",
        "ae.decoder_fit.lr=1e-3",
    )
    assert "decoder alone, latents frozen" in text
    new = {stage: len({p.parent for p in whole.glob(f"{stage}/*/done.json")} - before[stage]) for stage in stages}
    assert new == {"latents": 0, "denoiser": 0, "reconstructions": 1, "samples": 2}
    base, tuned = (
        load_file(next(whole.glob(f"{stage}/kl_f4_small-*/autoencoder.safetensors")))
        for stage in ("autoencoder", "decoder")
    )
    changed = {name for name in base if not base[name].equal(tuned[name])}
    assert changed and all(name.startswith(("network.decoder.", "network.post_quant_conv.")) for name in changed)


def test_latents_verify(whole: Path) -> None:
    text = run("train", whole, "ldm.fit.snapshots=[0.5]", "until=denoiser", "latents.verify=true")
    assert "verified: 64 images" in text
    block = sealed(whole, "latents") / "moments-00000.npy"
    data = np.load(block)
    np.save(block, data + 1)
    try:
        words = ["ldm.fit.snapshots=[0.5]", "until=denoiser", "latents.verify=true"]
        assert "was altered" in run("train", whole, *words, code=1)  # by its seal, whatever latents.verify says
        text = run("train", whole, *words, "verify=false", code=1)
        assert "stale or altered" in text
    finally:
        np.save(block, data)


def test_wandb_is_a_mirror_offline(tmp_path: Path) -> None:
    run("train", tmp_path, "until=autoencoder", "tracking=wandb", own_process=True)
    assert list(tmp_path.glob("runs/*/wandb/offline-run-*/*.wandb"))  # of the run, not of its stage
    assert len(losses(tmp_path, "autoencoder")) == 8
