"""A real training beside a server that does everything wrong: it waits for nothing, and afterwards nothing is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import pytest
from conftest import FakeStore
from wandb_server import Server

from ldmlab.config.compose import load
from ldmlab.reports.mirror import command

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "debug=tiny",
    "ae=pca_f4",
    "until=denoiser",
    "eval=none",
    "runtime.threads=1",
    "tracking=wandb",
    "tracking.finish_seconds=3",
]
TIMED = """
import runpy, sys, time
from ldmlab.training import tracking
spent = [0.0]
def timed(function):
    def call(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - began
    return call
for name in ("log", "warn", "rewind"):
    setattr(tracking.Tracker, name, timed(getattr(tracking.Tracker, name)))
sys.argv = ["src/train.py", *sys.argv[1:]]
try:
    runpy.run_path("src/train.py", run_name="__main__")
finally:
    print("spent", spent[0])
"""


def environment(server: Server, home: Path) -> dict[str, str]:
    own = {f"WANDB_{name}_DIR": str(home / name) for name in ("CACHE", "CONFIG", "DATA")}
    own |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "PYTHONPATH": str(ROOT / "src")}
    return {k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | own


def trained(store: Path) -> tuple[str, list[dict[str, float]]]:
    """(run id, rows of its denoiser's log)"""
    (run,), (log,) = store.glob("runs/*/run.json"), store.glob("denoiser/*/metrics.jsonl")
    return json.loads(run.read_text())["id"], [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_training_waits_for_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request hangs, fails, is cut off or gets nonsense in turn, and in the end the server is gone."""
    server, store = Server(), tmp_path / "store"
    server.modes = cycle(["ok", "ok", "hang", "error", "reset", "wrong"])
    own, words = environment(server, tmp_path), [*WORDS, "tracking.wandb=online", f"store={store}"]
    done = subprocess.run([sys.executable, "-c", TIMED, *words], cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 0 and "mirror=true runs='" in done.stdout, done.stdout + done.stderr
    id_, rows = trained(store)
    spent = float(done.stdout.rpartition("spent ")[2])
    assert spent <= 0.01 * max(row["time"] for row in rows)
    server.modes = None
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        command.write(load([f"store={store}", "mirror=true"]).cfg, list((store / "runs").iterdir()))
        there = [row for row in server.history(id_) if "denoiser/step" in row]
        assert [(row["denoiser/images"], row.get("denoiser/train/loss")) for row in there] == [
            (row["images"], row["loss"] if row["split"] == "train" else None) for row in rows
        ]
    server.close()


KILLED = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
from ldmlab.training.tracking import Tracker, following
run, stage, restart, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
class Options(dict):
    __getattr__ = dict.__getitem__
options = Options(wandb="offline", project="ldmlab", entity=None, artifacts="metadata", finish_seconds=20)
with following(run, json.loads((run / "planned.json").read_text()), options):
    tracker = Tracker(stage)
    tracker.rewind(restart)
    for images in range(restart + 8, last + 8, 8):
        tracker.log({"loss": 1 / images}, images, images // 8, "train", images / 80)
        if images % 80 == 0:
            (stage / "checkpoints" / f"{images:012d}").mkdir(parents=True, exist_ok=True)
        time.sleep(float(sys.argv[5]))
    if sys.argv[5] == "0":
        (stage / "done.json").write_text('{"files": {}}')
        (run / "run.json").write_text((run / "planned.json").read_text().replace("unfinished", "done"))
"""


def test_a_killed_command_goes_on_in_one_history(fake_store: FakeStore) -> None:
    """kill -9 in the middle of a stage; then it goes on from its checkpoint. wandb has the rows of the store, once each."""
    run, store = fake_store.run([fake_store.denoiser(points=0)]), fake_store.root
    stage = next(store.glob("denoiser/*"))
    raw = json.loads((run / "run.json").read_text())
    raw["stages"][0]["state"] = "unfinished"
    (run / "run.json").unlink()
    (run / "planned.json").write_text(json.dumps(raw))
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-c", KILLED, str(run), str(stage)]
    first = subprocess.Popen([*words, "0", "4000", "0.02"], env=own)
    while not list(run.glob("wandb/offline-run-*/*.wandb")) or not list(stage.glob("checkpoints/*")):
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    while "W&B" not in (run / "wandb" / "mirror.log").read_text():
        time.sleep(0.1)  # its follower sees the end and finishes by itself
    (cut,) = run.glob("wandb/offline-run-*")
    reached = max(json.loads(line)["images"] for line in (stage / "metrics.jsonl").read_text().splitlines())
    kept = max(int(path.name) for path in stage.glob("checkpoints/*"))
    assert images_of(cut) == list(range(8, kept + 8, 8)) and kept <= reached
    done = subprocess.run([*words, str(kept), str(reached + 400), "0"], env=own, capture_output=True, text=True)
    assert done.returncode == 0 and "W&B offline" in done.stdout, done.stdout + done.stderr
    (whole,) = run.glob("wandb/offline-run-*")
    assert whole != cut and images_of(whole) == list(range(8, reached + 408, 8))


def images_of(folder: Path) -> list[int]:
    """The image counts of the rows of an offline folder, by wandb's own reader."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = map(json.loads, subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines())
    return [line["history"]["item"]["denoiser/images"] for line in lines if line["type"] == "history"]
