"""Arms of one f compared: differences of means with intervals that cover, between arms that may be compared, and no others."""

from dataclasses import replace

import numpy as np
import pytest
from studies.tables import drawn

from ldmlab.studies.cells import TREATMENT, Cell, CellTable
from ldmlab.studies.pairs import MANY, pairs

NOISE = {"first": 0.0, "denoiser": 0.05, "images": 0.01}
TRUTH = {1: 1.0, 4: 0.0}


def treated(table: CellTable, name: str, shift: float, **facts: object) -> tuple[Cell, ...]:
    """The same cells under another treatment, their scores exp(shift) times as high."""
    arms = {
        cell.arm: replace(cell.arm, name=f"{cell.arm.name} {name}", facts={TREATMENT: name, **facts})
        for cell in table.cells
    }
    times = float(np.exp(shift))
    return tuple(
        replace(
            cell, arm=arms[cell.arm],
            points=tuple(
                replace(p, value=p.value * times, low=p.low * times, high=p.high * times,
                        replicates=tuple(r * times for r in p.replicates))
                for p in cell.points
            ),
        )
        for cell in table.cells
    )  # fmt: skip


def two(seed: int, shift: float, seeds: int = 2) -> CellTable:
    """Two treatments of f = 1 and 4, each with denoisers of its own, the second `shift` higher in ln FID."""
    first, second = (drawn(np.random.default_rng([seed, n]), TRUTH, (1, seeds, 1), **NOISE) for n in range(2))
    return CellTable((*treated(first, "plain", 0.0), *treated(second, "shifted", shift)))


def test_a_pair_is_the_ratio_of_the_means() -> None:
    table = two(0, 0.3)
    found = pairs(table)
    assert [(p.arm.f, p.arm.facts[TREATMENT], p.beside.facts[TREATMENT]) for p in found] == [
        (1, "shifted", "plain"), (4, "shifted", "plain")
    ]  # fmt: skip
    for pair in found:
        mean = {
            arm: np.mean([np.log(c.points[-1].value) for c in table.cells if c.arm == arm])
            for arm in (pair.arm, pair.beside)
        }
        assert pair.interval.value == pytest.approx(mean[pair.arm] - mean[pair.beside])
        assert pair.interval.sign == 1 and pair.interval.low < 0.3 < pair.interval.high


def test_the_intervals_cover_as_often_as_they_say() -> None:
    """300 studies whose treatments do not differ: 95 % of the intervals hold zero, within four standard errors."""
    signs = [pair.interval.sign for seed in range(300) for pair in pairs(two(seed, 0.0))[:1]]
    assert len(signs) == 300
    assert abs(np.mean([sign == 0 for sign in signs]) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 300)


def test_nothing_is_said_where_nothing_was_trained_twice() -> None:
    assert pairs(two(0, 0.3, seeds=1)) == []


def test_pictures_of_two_kinds_are_no_pair() -> None:
    table = drawn(np.random.default_rng(0), TRUTH, (1, 2, 1), **NOISE)
    mixed = CellTable((*treated(table, "one", 0.0, objects=1), *treated(table, "four", 0.2, objects=4)))
    assert pairs(mixed) == []


def test_of_many_arms_each_is_compared_with_the_first() -> None:
    table = drawn(np.random.default_rng(0), {4: 0.0}, (1, 2, 1), **NOISE)
    arms = [cell for n in range(MANY + 1) for cell in treated(table, f"arm {n}", 0.1 * n)]
    found = pairs(CellTable(tuple(arms)))
    assert len(found) == MANY and len({pair.beside.name for pair in found}) == 1
