"""Where numbers go: `metrics.jsonl` always, Weights & Biases as a mirror (tracking=wandb), a bar or plain lines on the terminal."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

from ldmlab.errors import UserError
from ldmlab.store.files import atomic


class Tracker:
    """One stage's stream of numbers. Rows: images, step, split, time (seconds of training), then the values.

    After a resume, rows beyond the checkpoint are dropped, so the file reads as one uninterrupted run.
    Only the main process has a tracker that writes (`folder` not None).
    """

    def __init__(self, folder: Path | None, mirror: "WandbMirror | None" = None):
        self.path = folder / "metrics.jsonl" if folder else None
        self.mirror = mirror

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
        if self.mirror:
            self.mirror.log({f"{split}/{k}": v for k, v in {**numbers, "step": step}.items()}, images)

    def warn(self, text: str, images: int) -> None:
        """A line of `warnings.jsonl`: what a health guard saw, and when."""
        if self.path is not None:
            with self.path.with_name("warnings.jsonl").open("a") as file:
                file.write(json.dumps({"images": images, "text": text}) + "\n")


class WandbMirror:
    """Weights & Biases run of one stage. It is a mirror: when it fails, it says so once and training goes on."""

    def __init__(
        self,
        folder: Path,
        mode: Literal["offline", "online"],
        project: str,
        entity: str | None,
        name: str,
        id: str,
        config: dict[str, Any],
    ):
        self.run: Any = None
        try:
            import wandb

            self.run = wandb.init(
                project=project, entity=entity, name=name, id=id, config=config, mode=mode, dir=str(folder),
                resume="allow" if mode == "online" else None, reinit="finish_previous",
            )  # fmt: skip
        except ImportError:
            raise UserError("tracking=wandb needs the package wandb: pip install wandb, or tracking=none.") from None
        except Exception as error:
            print(f"wandb is not available ({error}); metrics.jsonl has everything, training goes on", file=sys.stderr)

    def log(self, values: dict[str, float], step: int) -> None:
        if self.run is None:
            return
        try:
            self.run.log(values, step=step)
        except Exception as error:
            print(f"wandb stopped ({error}); metrics.jsonl has everything, training goes on", file=sys.stderr)
            self.run = None

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None
