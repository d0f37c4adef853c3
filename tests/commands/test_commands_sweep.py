"""A whole sweep, killed while it trains and issued again: it ends with the results of its cells undisturbed, bit for bit."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from option_words import replacing
from whole_commands import run_here

from ldmlab.config.words import SWEEP_CHILD

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SWEEP = [
    "-m", "sweeps=compression", "ae=pca_f4", "seeds.denoiser=2", "debug=tiny", "data.resolution=32", "data.train_images=64",
    "data.val_images=16", "ldm.fit.images=480", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "ldm.fit.cooldown=0", "eval=none",
    "eval.samples=8", "until=samples", "parallel=1", "runtime.log_seconds=1e-9", "runtime.checkpoint_seconds=0.5",
    'hydra.sweeper.beside=[{ae: "pca_f4", sampler.steps: "10,50", seeds.denoiser: "1"}]',
]  # fmt: skip


def start(store: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "src/train.py", *SWEEP, f"store={store}"]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def results(store: Path) -> dict[str, str]:
    """sha256 of every set of samples and of the weights behind it, by folder."""
    files = [*store.glob("samples/*/images.npy"), *store.glob("denoiser/*/weights.safetensors")]
    return {str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def undisturbed(jobs: list[list[str]], store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The results of the cells' own commands, one after the other in this process."""
    monkeypatch.setenv(SWEEP_CHILD, "1")
    for words in jobs:
        done = run_here("train", replacing(words, [f"store={store}"]))
        assert done.returncode == 0, done.stderr
    return results(store)


def test_a_killed_sweep_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "killed"
    sweep = start(killed)
    while not list(killed.glob("denoiser/*/metrics.jsonl")):
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    jobs = json.loads((killed / "sweeps/compression/jobs.json").read_text())["jobs"]
    assert len(jobs) == 4 and {job["exit_code"] for job in jobs} == {None}  # two denoisers, and two ladders
    if sys.platform == "linux":  # the cell was told, wrote a checkpoint and ended; nothing was sealed
        end = time.monotonic() + 60
        while "stopped: SIGTERM" not in (killed / "sweeps/compression/job-0.log").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert list(killed.glob("denoiser/*/checkpoints/0*")) and not list(killed.glob("denoiser/*/done.json"))
    again = start(killed)
    assert again.wait() == 0, again.stderr and again.stderr.read().decode()
    whole = undisturbed([job["words"] for job in jobs], tmp_path / "whole", monkeypatch)
    assert len(whole) >= 4 and results(killed) == whole
    jobs = json.loads((killed / "sweeps/compression/jobs.json").read_text())["jobs"]
    assert [job["exit_code"] for job in jobs] == [0] * 4
