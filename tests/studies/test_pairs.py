"""Arms of one f compared: differences of means with intervals that cover, between arms that may be compared, and no others."""

from dataclasses import replace

import numpy as np
import pytest
from studies.tables import R, drawn

from ldmlab.studies.cells import TREATMENT, Cell, CellTable
from ldmlab.studies.pairs import MANY, pairs

NOISE = {"first": 0.0, "denoiser": 0.05, "images": 0.01}
TRUTH = {1: 1.0, 4: 0.0}


def treated(
    table: CellTable, name: str, shift: float, rng: np.random.Generator | None = None, **facts: object
) -> tuple[Cell, ...]:
    """The same cells under another treatment, their scores exp(shift) times as high; with rng, images of their own."""
    e = np.zeros(R + 1) if rng is None else 0.003 * rng.standard_normal(R + 1)
    arms = {
        cell.arm: replace(cell.arm, name=f"{cell.arm.name} {name}", facts={TREATMENT: name, **facts})
        for cell in table.cells
    }
    times = float(np.exp(shift))
    return tuple(
        replace(
            cell, arm=arms[cell.arm],
            points=tuple(
                replace(p, value=p.value * times * np.exp(e[0]), low=p.low * times, high=p.high * times,
                        replicates=tuple(np.array(p.replicates) * times * np.exp(e[1:])))
                for p in cell.points
            ),
        )
        for cell in table.cells
    )  # fmt: skip


def two(seed: int, shift: float, seeds: int = 2) -> CellTable:
    """Two treatments of f = 1 and 4, each with denoisers of its own, the second `shift` higher in ln FID."""
    first, second = (drawn(np.random.default_rng([seed, n]), TRUTH, (1, seeds, 1), **NOISE) for n in range(2))
    return CellTable((*treated(first, "plain", 0.0), *treated(second, "shifted", shift)))


def common(seed: int, shift: float, own: float, treatments: int = 2, firsts: int = 1) -> CellTable:
    """Treatments of one first stage. A seed moves all of them alike by `NOISE`; `own` is what else it does to each."""
    rng = np.random.default_rng(seed)
    base = drawn(rng, TRUTH, (firsts, 2, 1), **NOISE)
    table = [replace(cell, arm=replace(cell.arm, first_stage=cell.arm.name)) for cell in base.cells]
    cells: list[Cell] = []
    for n in range(treatments):
        for cell in table:
            cells += treated(CellTable((cell,)), f"treatment {n}", n * shift + own * rng.standard_normal(), rng)
    return CellTable(tuple(cells))


def test_a_pair_is_the_ratio_of_the_means() -> None:
    for table in (two(0, 0.3), common(0, 0.3, 0.001)):
        found = pairs(table)
        assert [p.arm.f for p in found] == [1, 4]
        assert len({p.arm.facts[TREATMENT] for p in found}) == len({p.beside.facts[TREATMENT] for p in found}) == 1
        for pair in found:
            mean = {
                arm: np.mean([np.log(c.points[-1].value) for c in table.cells if c.arm == arm])
                for arm in (pair.arm, pair.beside)
            }
            assert pair.interval.value == pytest.approx(mean[pair.arm] - mean[pair.beside])
            assert pair.interval.sign == 1 and pair.interval.low < 0.3 < pair.interval.high


@pytest.mark.parametrize("kind", ["unpaired", "by seed", "by seed, three", "by seed, two first stages"])
def test_the_intervals_cover_as_often_as_they_say(kind: str) -> None:
    """300 studies whose treatments do not differ: 95 % of the intervals hold zero, within four standard errors."""
    make = {
        "unpaired": lambda seed: two(seed, 0.0),
        "by seed": lambda seed: common(seed, 0.0, 0.03),
        "by seed, three": lambda seed: common(seed, 0.0, 0.03, treatments=3),
        "by seed, two first stages": lambda seed: common(seed, 0.0, 0.03, firsts=2),
    }[kind]
    found = [pairs(make(seed))[-1] for seed in range(300)]
    assert {pair.by_seed for pair in found} == {kind != "unpaired"}
    share = np.mean([pair.interval.sign == 0 for pair in found])
    assert abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 300)


def test_what_a_seed_does_to_both_does_not_widen_the_interval() -> None:
    """Seeds move all arms alike by 5 %, each arm by 0.1 % of its own: compared seed by seed the interval is far narrower."""
    ratios = []
    for seed in range(20):
        table = common(seed, 0.3, 0.001)
        strangers = CellTable(tuple(replace(cell, arm=replace(cell.arm, first_stage="")) for cell in table.cells))
        for near, far in zip(pairs(table), pairs(strangers), strict=True):
            assert near.by_seed and not far.by_seed
            assert near.interval.value == pytest.approx(far.interval.value)
            ratios.append((near.interval.high - near.interval.low) / (far.interval.high - far.interval.low))
    assert np.median(ratios) < 0.4


def test_equal_scores_differ_by_nothing_and_say_nothing_of_other_arms() -> None:
    """Arms of f = 4 whose cells are the same twice: their difference is zero, and that of f = 1 is as without them."""
    table = common(0, 0.3, 0.02)
    copied = {(c.arm.f, c.denoiser_seed): c.points for c in table.cells if c.arm.facts[TREATMENT] == "treatment 0"}
    cells = tuple(
        replace(c, points=copied[c.arm.f, c.denoiser_seed]) if c.arm.f == 4 else c for c in table.cells
    )  # fmt: skip
    found = {pair.arm.f: pair.interval for pair in pairs(CellTable(cells))}
    alone = pairs(CellTable(tuple(c for c in cells if c.arm.f == 1)))
    assert tuple(found[4])[:3] == (0.0, 0.0, 0.0)
    assert found[1] == alone[0].interval


def test_unequal_seeds_are_compared_as_unpaired_means() -> None:
    table = common(0, 0.3, 0.02)
    assert [pair.by_seed for pair in pairs(CellTable(table.cells[:-1]))] == [True, False]


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
