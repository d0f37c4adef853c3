"""Where numbers go: into `metrics.jsonl`, and nowhere else from here. Another process reads it for W&B (tracking=wandb)."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldmlab.errors import UserError
from ldmlab.store.files import atomic, writing

PACKAGE = Path(__file__).resolve().parents[2]
AT_AN_ERROR = 5.0  # seconds that a command waits for W&B when it was stopped or failed


class Tracker:
    """One stage's stream of numbers. Rows: images, step, split, time (seconds of training), then the values.

    After a resume, rows beyond the checkpoint are dropped, so the file reads as one uninterrupted run.
    Only the main process has a tracker that writes (`folder` not None).
    """

    def __init__(self, folder: Path | None):
        self.path = folder / "metrics.jsonl" if folder else None

    def rewind(self, images: int) -> None:
        """Forget rows that a restarted run will write again (and a last line cut off by a kill)."""
        if self.path is None:
            return
        for path in (self.path, self.path.with_name("warnings.jsonl")):
            if not path.exists():
                continue
            rows = []
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if row["images"] <= images:
                    rows.append(line)
            with atomic(path) as beside:
                beside.write_text("".join(f"{line}\n" for line in rows))

    def log(self, values: dict[str, float], images: int, step: int, split: str, seconds: float) -> None:
        if self.path is None:
            return
        numbers = {k: v if isinstance(v, int) else float(f"{v:.7g}") for k, v in values.items()}
        row = {"images": images, "step": step, "split": split, "time": round(seconds, 3), **numbers}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def warn(self, text: str, images: int) -> None:
        """A line of `warnings.jsonl`: what a health guard saw, and when."""
        if self.path is not None:
            with self.path.with_name("warnings.jsonl").open("a") as file:
                file.write(json.dumps({"images": images, "text": text}) + "\n")


@contextlib.contextmanager
def following(folder: Path, record: dict[str, Any], options: Any) -> Iterator[None]:
    """While the block runs, a process of its own tells W&B what the store has of this run (`ldmlab.reports.mirror.follow`).

    folder: of the run. record: what its run.json will hold. options: `tracking`. The block never waits for that process; what
    it says, and what goes wrong in it, is printed at the end, after some `options.finish_seconds` at most; AT_AN_ERROR when the
    block raises. Raises UserError when wandb is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UserError("tracking=wandb needs the package wandb: pip install wandb, or tracking=none.")
    fields = ("wandb", "project", "entity", "artifacts", "finish_seconds")
    start = {"folder": str(folder), "record": record, "tracking": {name: options[name] for name in fields}}
    with writing(folder):
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        log = (folder / "wandb" / "mirror.log").open("wb")
    with log:
        words = [sys.executable, "-m", "ldmlab.reports.mirror.follow"]
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        follower = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"PYTHONPATH": path}
        )  # fmt: skip
    assert follower.stdin is not None
    patience = AT_AN_ERROR
    try:
        with contextlib.suppress(OSError):  # it ended at once: its log says why
            follower.stdin.write(json.dumps(start).encode() + b"\n")
            follower.stdin.flush()
        yield
        patience = 2 * options.finish_seconds + 25.0  # it ends itself before
    finally:
        with contextlib.suppress(OSError):  # it is gone already
            follower.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            follower.wait(timeout=patience)
        said = Path(log.name).read_text(errors="replace").splitlines()
        print(f" {said[-1]}" if said else f" W&B gets the rest in the background ({log.name})", flush=True)
