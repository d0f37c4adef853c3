"""How fast this machine was: what a study still needs is forecast from the times of what the store has already.

Operations over seconds differ from stage to stage: a first stage of few wide layers, a denoiser of 4×4 positions and a sampler in
bfloat16 are several times apart. So a finished stage speaks for the stages of its name, and counted operations over a rule of thumb
(`costs.UTILISATION`) for those of which none has finished.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmlab.store.card import machine
from ldmlab.store.files import read_json
from ldmlab.sweeping.forecast import CellForecast, StageForecast


def by_measurement(cells: Sequence[CellForecast]) -> list[CellForecast]:
    """The cells with the seconds that finished stages of the same name promise."""
    speeds = speeds_of(stage for cell in cells for stage in cell.stages)

    def promised(stage: StageForecast) -> StageForecast:
        speed = speeds.get(stage.name)
        return stage if speed is None else replace(stage, seconds=stage.operations / speed)

    return [replace(cell, stages=tuple(map(promised, cell.stages))) for cell in cells]


def speeds_of(stages: Iterable[StageForecast]) -> dict[str, float]:
    """Operations a second of this whole machine by name of stage: all finished ones' operations over all their seconds."""
    done = {stage.folder: stage for stage in stages if stage.operations and not stage.missing}
    operations: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    for folder, stage in done.items():
        if (spent := _seconds_here(folder)) is not None:
            operations[stage.name] += stage.operations
            seconds[stage.name] += spent
    return {name: operations[name] / seconds[name] for name in operations}


def _seconds_here(folder: Path) -> float | None:
    """What a finished stage took of this whole machine; None for one that was made elsewhere, or not at one go from its beginning."""
    if not (folder / "card.json").exists() or (folder / "continued.json").exists():
        return None
    card: dict[str, Any] = read_json(folder / "card.json")
    here = machine()
    if any(card["machine"].get(part) != here[part] for part in ("cpu", "cores", "gpu")):
        return None
    spent = card["seconds"] if card["device"] == "cuda" else card["cpu_seconds"]
    if not spent:
        return None
    return float(spent) if card["device"] == "cuda" else float(spent) / here["cores"]
