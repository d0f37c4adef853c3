"""What a whole study would do and cost: each cell's plan, each shared stage counted once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmlab.config.compose import load
from ldmlab.pipeline.costs import UTILISATION, machine_speed
from ldmlab.pipeline.plan import state_of
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.stage import Stage
from ldmlab.sweeping.cells import labels
from ldmlab.terminal import clock, table

DONE = ("done", "ready")


@dataclass(frozen=True)
class StageForecast:
    """A stage of a cell. seconds: of this whole machine, by operations, as far as they are counted; megabytes: it leaves; upstream:
    folders of all stages it stands on, however far up; operations: counted ones, 0 where none are."""

    name: str
    folder: Path
    state: str
    seconds: float
    megabytes: float
    upstream: frozenset[Path] = frozenset()
    operations: float = 0.0

    @property
    def id(self) -> str:
        return self.folder.name.rpartition("-")[2]

    @property
    def missing(self) -> bool:
        """Whether it is still to be made, as the store is now."""
        return self.state not in DONE and not (self.folder / "done.json").exists()


@dataclass(frozen=True)
class CellForecast:
    """A job of a sweep. words: of its command; label: what tells it from the others; run: the folder of its run's record."""

    words: list[str]
    label: str
    stages: tuple[StageForecast, ...]
    run: Path = Path()

    @property
    def done(self) -> bool:
        """Whether every stage and the run's record are there, as the store is now."""
        return (self.run / "run.json").exists() and not any(stage.missing for stage in self.stages)

    def left(self, besides: frozenset[str] = frozenset()) -> float:
        """Seconds of what is missing, without the stages named."""
        return sum(stage.seconds for stage in self.stages if stage.missing and stage.name not in besides)


def forecast(jobs: Sequence[list[str]], elsewhere: bool = False) -> list[CellForecast]:
    """Every cell's plan, in order. Finds everything that can be wrong before anything is made; writes at most data caches.

    elsewhere: other machines run them, so that this one need not have their device.
    Raises UserError with the words of the job at fault before it.
    """
    speed, words = machine_speed() * UTILISATION, ["dry_run=true", *(["runtime.device=auto"] if elsewhere else [])]
    return [_cell(job, label, speed, words) for job, label in zip(jobs, labels(jobs), strict=True)]


def _cell(words: list[str], label: str, speed: float, besides: list[str]) -> CellForecast:
    plan = prepare(load([*words, *besides]))
    above: dict[int, frozenset[Path]] = {}
    for stage in plan.order:
        on = [up for up in stage.upstream().values() if isinstance(up, Stage)]
        above[id(stage)] = frozenset(plan.store.folder(up.address) for up in on).union(*(above[id(up)] for up in on))
    stages = [
        StageForecast(
            stage.name, plan.store.folder(stage.address), state_of(stage, row, plan.store),
            row.images * row.flops / speed, row.megabytes, above[id(stage)], row.images * row.flops,
        )
        for stage, row in plan.rows
    ]  # fmt: skip
    return CellForecast(words, label, tuple(stages), plan.store.folder(plan.run))


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
