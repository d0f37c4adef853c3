"""Runs and sweeps on a real Slurm that the test starts: shared stages, pre-emption, a kill, cancelling, several nodes.

make cluster
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(7200)]

TINY = [
    "debug=tiny", "ae=kl_f4_small", "data.resolution=32", "data.train_images=64", "data.val_images=16", "ae.fit.images=64",
    "ldm.fit.images=640", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "ldm.fit.cooldown=0", "eval=none", "eval.samples=24",
    "until=samples", "runtime.log_seconds=1e-9", "runtime.checkpoint_seconds=1", "runtime.device=cpu",
]  # fmt: skip
SWEEP = ["-m", "ldm.seed=0,1,2,3", *TINY]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low"]


def train(environment: dict[str, str], store: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "src/train.py", *words, f"store={store}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == code, f"exit {done.returncode}\n{text}"
    print(f"$ python src/train.py {' '.join(w for w in words if w not in TINY)}\n{text}", flush=True)
    return text


def asked(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def until(condition: Callable[[], object], what: str, seconds: float = 1800) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def training(store: Path, seed: int) -> Path | None:
    """The unfinished denoiser of a seed that has written a checkpoint."""
    for folder in store.glob("denoiser/*"):
        at_work = list(folder.glob("checkpoints/0*")) and not (folder / "done.json").exists()
        if (
            at_work
            and f"\n  seed: {seed}\n"
            in (folder / "config.yaml").read_text().partition("\nldm:")[2].partition("\nobjective:")[0]
        ):
            return folder
    return None


def job_of(store: Path, seed: int) -> str:
    """Slurm's id of a cell's job."""
    (log,) = [
        job["log"]
        for job in json.loads((store / "sweeps/jobs.json").read_text())["jobs"]
        if f"ldm.seed={seed}" in job["words"]
    ]
    record = store / "queue" / f"cell-{log.removeprefix('job-').removesuffix('.log')}.json"
    return str(json.loads(record.read_text())["job"])


def command_of(store: Path, seed: int) -> int:
    """Process id of the cell's command, not of what started it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if (
            f"store={store}" in words
            and f"ldm.seed={seed}" in words
            and any(word.endswith("src/train.py") for word in words)
        ):
            return int(folder.name)
    raise AssertionError(f"no process trains seed {seed}")


def results(store: Path) -> dict[str, str]:
    """sha256 of each stage's result, by folder."""
    names = (
        "autoencoder/*/weights.safetensors",
        "latents/*/*.npy",
        "denoiser/*/weights.safetensors",
        "samples/*/images.npy",
    )
    files = [file for name in names for file in store.glob(name)]
    return {str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, slurm: dict[str, str]) -> Path:
    """The sweep on this machine, undisturbed."""
    store = tmp_path_factory.mktemp("local")
    train(slurm, store, *SWEEP, "parallel=1")
    return store


def test_a_sweep_with_a_preemption_and_a_kill_ends_as_a_local_one(
    slurm: dict[str, str], local: Path, tmp_path: Path
) -> None:
    asked(slurm, "scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    text = train(slurm, tmp_path, *SWEEP, *SLURM, "submit=true")
    assert "5 jobs submitted" in text  # one of what the cells share, and four cells
    shared, *cells = sorted(asked(slurm, "squeue", "--array", "--noheader", "--format=%i %E").splitlines())
    assert all(line.split()[1] == f"afterok:{shared.split()[0]}(unfulfilled)" for line in cells)
    assert len({line.partition("_")[0] for line in cells}) == 1  # an array
    assert "nothing to submit" in train(slurm, tmp_path, *SWEEP, *SLURM, "submit=true")
    assert train(slurm, tmp_path, *SWEEP, "status=true").count("waits for the shared autoencoder") == 4
    asked(slurm, "scontrol", "update", "nodename=n[1-2]", "state=resume")

    until(lambda: training(tmp_path, 0), "seed 0 to have a checkpoint")
    preempted = job_of(tmp_path, 0)
    node = asked(slurm, "squeue", "--noheader", f"--jobs={preempted}", "--format=%N")
    asked(
        slurm, "sbatch", "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 1"
    )
    (log,) = tmp_path.glob(f"sweeps/{json.loads((tmp_path / 'sweeps/jobs.json').read_text())['jobs'][0]['log']}")
    until(lambda: "stopped: SIGTERM" in log.read_text(), "the pre-empted cell's checkpoint")

    until(lambda: training(tmp_path, 3), "seed 3 to have a checkpoint")
    os.kill(command_of(tmp_path, 3), signal.SIGKILL)
    until(lambda: not asked(slurm, "squeue", "--noheader"), "the queue to be empty")
    assert log.read_text().count("resumes at") == 1  # it went on from there by itself
    text = train(slurm, tmp_path, *SWEEP, "status=true")
    assert "3 of 4 cells done" in text and "failed with exit code 137" in text

    text = train(slurm, tmp_path, *SWEEP, *SLURM)  # waits
    assert "1 jobs submitted" in text
    assert "4 of 4 cells done" in train(slurm, tmp_path, *SWEEP, "status=true")
    assert [job["exit_code"] for job in json.loads((tmp_path / "sweeps/jobs.json").read_text())["jobs"]] == [0] * 4
    assert len(results(local)) >= 10 and results(tmp_path) == results(local)


def test_one_run_on_two_nodes_is_cancelled_and_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    """And once more by itself, after the signal that Slurm sends before a time limit."""
    run = [*(word for word in TINY if not word.startswith("ldm.fit.images")), "ldm.fit.images=1600"]
    two = [*run, *SLURM, "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=1"]
    assert "1 jobs submitted" in train(slurm, tmp_path, *two, "submit=true")
    until(lambda: training(tmp_path, 0), "a checkpoint")
    (job,) = asked(slurm, "squeue", "--noheader", "--format=%i %N %b").splitlines()
    assert job.split()[1:] == ["n[1-2]", "gres:gpu:1"]
    assert "1 jobs cancelled" in train(slurm, tmp_path, *run, "cancel=true")
    until(lambda: not asked(slurm, "squeue", "--noheader"), "the queue to be empty")
    (log,) = tmp_path.glob("sweeps/job-*.log")
    assert "stopped: SIGTERM" in log.read_text()
    assert "resumes at" in train(slurm, tmp_path, *run, "status=true")
    assert "none of these cells" in train(slurm, tmp_path, *run, "cancel=true", code=1)
    assert "1 jobs submitted" in train(slurm, tmp_path, *two, "submit=true")
    until(lambda: "resumes at" in log.read_text(), "it to go on")
    asked(slurm, "scancel", "--signal=USR2", asked(slurm, "squeue", "--noheader", "--format=%i"))
    assert "nothing to submit" in train(slurm, tmp_path, *two)  # the job has queued itself again, and is waited for
    card = json.loads(next(tmp_path.glob("denoiser/*/card.json")).read_text())
    assert card["processes"] == 2 and log.read_text().count("resumes at") == 2


def test_a_shared_stage_that_fails_takes_its_cells_out_of_the_queue(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "autoencoder").write_text("a file where a folder is needed")
    text = train(slurm, tmp_path, "-m", "ldm.seed=0,1", *TINY, *SLURM, code=1)
    assert "3 jobs submitted" in text and "2 of 2 jobs are not done" in text
    (log,) = (tmp_path / "sweeps").glob("shared-*.log")
    assert (
        text.count(f"autoencoder failed with exit code 1; see {log}") == 2 and "a file stands where" in log.read_text()
    )


def test_what_slurm_refuses_is_said_in_one_line(slurm: dict[str, str], tmp_path: Path) -> None:
    text = train(slurm, tmp_path, *TINY, SLURM[0], "hydra.launcher.partition=nosuch", code=1)
    assert "error: sbatch refused: " in text and "partition" in text and "Traceback" not in text
