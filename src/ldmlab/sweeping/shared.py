"""Which stages several cells of a sweep stand on: on a cluster each group of them is one job that its cells wait for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ldmlab.sweeping.forecast import CellForecast


class Shared(NamedTuple):
    """Missing stages that the same cells need. folders: theirs; cells: numbers; on: indices of earlier groups that they stand on."""

    folders: tuple[Path, ...]
    cells: tuple[int, ...]
    on: tuple[int, ...]


def shared(cells: Sequence[CellForecast]) -> list[Shared]:
    """Groups of missing stages that two or more cells need, each after the groups that it stands on."""
    users: dict[Path, list[int]] = {}
    upstream: dict[Path, frozenset[Path]] = {}
    for number, cell in enumerate(cells):
        for stage in cell.stages:
            if stage.missing:
                users.setdefault(stage.folder, []).append(number)
                upstream[stage.folder] = stage.upstream
    by_cells: dict[tuple[int, ...], list[Path]] = {}
    for folder, numbers in users.items():
        if len(numbers) > 1:
            by_cells.setdefault(tuple(numbers), []).append(folder)
    found: list[Shared] = []
    # what a stage stands on is needed by at least the same cells
    for needing, folders in sorted(by_cells.items(), key=lambda group: -len(group[0])):
        above = frozenset[Path]().union(*(upstream[folder] for folder in folders))
        on = tuple(index for index, group in enumerate(found) if above & set(group.folders))
        found.append(Shared(tuple(folders), needing, on))
    return found
