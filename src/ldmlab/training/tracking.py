"""Where numbers go: `metrics.jsonl` always, Weights & Biases as a mirror (tracking=wandb), a bar or plain lines on the terminal."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

from ldmlab.errors import UserError


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
            beside = path.with_suffix(".tmp")
            beside.write_text("".join(f"{line}\n" for line in rows))
            os.replace(beside, path)

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


class Progress:
    """A bar on a terminal, a plain line now and then in a file: stage, share, images, speed, values, time left."""

    def __init__(
        self, name: str, total: int, unit: str = "img", start: int = 0, every: float = 10.0, show: bool = True
    ):
        self.name, self.total, self.unit, self.every, self.show = name, total, unit, every, show
        self.live = show and sys.stderr.isatty()
        self.began, self.start, self.said = time.monotonic(), start, -1e9
        self.drawn = -1e9

    def update(self, done: int, values: dict[str, float] | None = None) -> None:
        now = time.monotonic()
        last = done >= self.total
        if not self.show or (now - self.drawn < 0.2 and self.live and not last):
            return
        text = self._text(done, now, values or {})
        if self.live:
            self.drawn = now
            sys.stderr.write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
            sys.stderr.flush()
        elif now - self.said >= self.every or last:
            self.said = now
            print(text, file=sys.stderr, flush=True)

    def _text(self, done: int, now: float, values: dict[str, float]) -> str:
        share = done / max(self.total, 1)
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left = (self.total - done) / rate if rate > 0 else float("inf")
        parts = [f"{number(done)}/{number(self.total)} {self.unit}"]
        if rate > 0:
            parts.append(f"{number(round(rate)) if rate >= 10 else f'{rate:.2g}'} {self.unit}/s")
        parts += [f"{k} {v:.4g}" for k, v in values.items()]
        if left < float("inf") and done < self.total:
            parts.append(f"{clock(left)} left")
        elif done >= self.total:
            parts.append(clock(now - self.began))
        bar = ""
        if self.live:
            full = round(20 * min(share, 1))
            bar = "━" * full + "╌" * (20 - full) + " "
        return f" {self.name:<12}{bar}{share:5.0%}  " + " · ".join(parts)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self.show:
            print(f"\r\x1b[2K{text}" if self.live else text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            sys.stderr.write("\n")


def number(value: int) -> str:
    """12 345 678 with narrow groups, as the tables print it."""
    return f"{value:,}".replace(",", " ")


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour up."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def as_text(lines: list[list[str]]) -> str:
    """Columns aligned with two spaces between them."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        " " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
