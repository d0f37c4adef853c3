"""What a whole study would do and cost: each cell's plan, each shared stage counted once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmlab.config.compose import load
from ldmlab.pipeline.costs import UTILISATION, machine_speed
from ldmlab.pipeline.plan import state_of
from ldmlab.pipeline.run import prepare
from ldmlab.sweeping.cells import labels
from ldmlab.terminal import clock, table

DONE = ("done", "ready")


@dataclass(frozen=True)
class StageForecast:
    """A stage of a cell. seconds: of this whole machine, by operations, as far as they are counted; megabytes: it leaves."""

    name: str
    folder: Path
    state: str
    seconds: float
    megabytes: float

    @property
    def missing(self) -> bool:
        """Whether it is still to be made, as the store is now."""
        return self.state not in DONE and not (self.folder / "done.json").exists()


@dataclass(frozen=True)
class CellForecast:
    """A job of a sweep. words: of its command; label: what tells it from the others."""

    words: list[str]
    label: str
    stages: tuple[StageForecast, ...]

    def left(self, besides: frozenset[str] = frozenset()) -> float:
        """Seconds of what is missing, without the stages named."""
        return sum(stage.seconds for stage in self.stages if stage.missing and stage.name not in besides)


def forecast(jobs: Sequence[list[str]]) -> list[CellForecast]:
    """Every cell's plan, in order. Finds everything that can be wrong before anything is made; writes at most data caches.

    Raises UserError with the words of the job at fault before it.
    """
    speed = machine_speed() * UTILISATION
    return [_cell(words, label, speed) for words, label in zip(jobs, labels(jobs), strict=True)]


def _cell(words: list[str], label: str, speed: float) -> CellForecast:
    plan = prepare(load([*words, "dry_run=true"]))
    stages = [
        StageForecast(
            stage.name, plan.store.folder(stage.address), state_of(stage, row, plan.store),
            row.images * row.flops / speed, row.megabytes,
        )
        for stage, row in plan.rows
    ]  # fmt: skip
    return CellForecast(words, label, tuple(stages))


def summary(cells: Sequence[CellForecast], side_by_side: int, devices: int) -> str:
    """The study's plan as text: a line a cell, then stages, time and disk of the whole. A stage is charged to the first cell
    that has it."""
    seen: set[Path] = set()
    lines, total, disk = [["cell", "what", "done", "to make", "cost"]], 0.0, 0.0
    for number, cell in enumerate(cells):
        own = [stage for stage in cell.stages if stage.missing and stage.folder not in seen]
        shared = [stage.name for stage in cell.stages if stage.missing and stage.folder in seen]
        seen |= {stage.folder for stage in own}
        cost, size = sum(stage.seconds for stage in own), sum(stage.megabytes for stage in own)
        total, disk = total + cost, disk + size
        made = " ".join(dict.fromkeys(stage.name for stage in own)) or "nothing"
        made += f" (shared: {' '.join(dict.fromkeys(shared))})" if shared else ""
        finished = sum(not stage.missing for stage in cell.stages)
        text = " · ".join([*([f"about {clock(cost)}"] if cost else []), *([f"{size:.3g} MB"] if size >= 0.1 else [])])
        lines.append([str(number), cell.label, f"{finished} of {len(cell.stages)}", made, text])
    hours = total / devices / 3600
    time = f"{hours:.3g} hours" if hours >= 1 else f"{clock(3600 * hours)} minutes"
    size_text = f"{disk / 1000:.3g} GB" if disk >= 1000 else f"{disk:.3g} MB"
    counted = f" {len(cells)} cells · {len(seen)} stages to make · about {time} · {size_text}"
    return f"{table(lines)}\n{counted} · {side_by_side} side by side"
