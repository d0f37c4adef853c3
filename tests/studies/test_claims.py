"""The paper's claims on tables whose truth is known: each verdict both ways, and what makes one undecided."""

from dataclasses import replace

import numpy as np
import pytest
from studies.tables import drawn

from ldmlab.studies.advice import advise
from ldmlab.studies.cells import Cell, CellTable
from ldmlab.studies.claims import Judgement, claims, judge

QUIET = {"first": 0.01, "denoiser": 0.02, "images": 0.005}
PAPER = {1: 0.7, 2: 0.5, 4: 0.1, 8: 0.0, 16: 0.1, 32: 1.0}  # ln FID at the end of training, like Fig. 6
EARLY = {
    0.25: {1: 0.6, 2: 0.6, 4: 0.5, 8: 0.4, 16: 0.3, 32: 0.1},
    0.5: {1: 0.3, 2: 0.3, 4: 0.2, 8: 0.2, 16: 0.1},
    1.0: {},
}
UPSIDE_DOWN = {f: -y for f, y in PAPER.items()}
LATE = {share: {f: -y for f, y in more.items()} for share, more in EARLY.items()}


def verdicts(table: CellTable, study: str = "compression") -> dict[str, Judgement]:
    return {each.claim.name: each.judgement for each in judge(table, study)}


def like(
    truth: dict[int, float], shares: dict[float, dict[int, float]], families: tuple[str, ...] = ("kl",)
) -> CellTable:
    return drawn(np.random.default_rng(0), truth, (2, 2, 1), **QUIET, families=families, shares=shares)  # type: ignore[arg-type]


def with_objects(table: CellTable, objects: int) -> tuple[Cell, ...]:
    return tuple(
        replace(cell, arm=replace(cell.arm, name=f"{cell.arm.name} objects={objects}", facts={"objects": objects}))
        for cell in table.cells
    )


def test_cells_like_the_paper_s_support_its_claims() -> None:
    found = verdicts(like(PAPER, EARLY, ("kl", "vq")))
    assert found == dict.fromkeys(found, "supported") and len(found) == 6


def test_cells_unlike_the_paper_s_contradict_them() -> None:
    found = verdicts(like(UPSIDE_DOWN, LATE))
    undecided = {"kl_or_vq", "larger_f_faster"}  # no VQ; its FID is higher, so nothing is said of speed
    assert {name for name, judgement in found.items() if judgement == "undecided here"} == undecided
    assert all(judgement == "contradicted" for name, judgement in found.items() if name not in undecided)


def test_one_seed_decides_nothing() -> None:
    table = drawn(np.random.default_rng(0), PAPER, (1, 1, 1), **QUIET, families=("kl", "vq"), shares=EARLY)  # type: ignore[arg-type]
    found = judge(table, "compression")
    assert {each.judgement for each in found} == {"undecided here"} and all("one seed" in each.why for each in found)
    assert advise(table) is None


def test_seeds_as_different_as_the_arms_decide_nothing() -> None:
    """But for few (the truth has differences, one in twenty is chance), and for what compares one training at two times."""
    along, found = {"large_f_stops", "less_compute_larger_f"}, []
    for n in range(30):
        table = drawn(np.random.default_rng(n), PAPER, (1, 2, 1), 0.0, 2.0, 0.005, families=("kl", "vq"), shares=EARLY)
        found += [judgement == "undecided here" for name, judgement in verdicts(table).items() if name not in along]
    assert np.mean(found) > 0.85


def test_missing_cells_are_named() -> None:
    found = {each.claim.name: each for each in judge(like({1: 0.5, 4: 0.0, 8: 0.1}, {1.0: {}}), "compression")}
    assert "not scored at half" in found["large_f_stops"].why
    assert "no finished cell with a vq first stage" in found["kl_or_vq"].why
    assert found["small_f_slow"].why == "f = 1 against f = 4, 8"


@pytest.mark.parametrize(("more", "judgement"), [(0.0, "supported"), (0.5, "contradicted")])
def test_kl_and_vq_are_equal_within_a_tenth_or_not(more: float, judgement: str) -> None:
    one, other = (drawn(np.random.default_rng(2), {4: y, 8: y}, (2, 2, 1), **QUIET, families=(family,))  # type: ignore[arg-type]
                  for family, y in (("kl", 0.0), ("vq", more)))  # fmt: skip
    assert verdicts(CellTable((*one.cells, *other.cells)), "kl_or_vq") == {"kl_or_vq": judgement}


def test_complex_pictures_want_a_smaller_f_or_not() -> None:
    steep, flat = like({2: 0.0, 4: 0.3, 8: 0.6}, {1.0: {}}), like({2: 0.6, 4: 0.3, 8: 0.0}, {1.0: {}})
    four_steep = CellTable((*with_objects(steep, 4), *with_objects(flat, 1)))
    one_steep = CellTable((*with_objects(steep, 1), *with_objects(flat, 4)))
    assert verdicts(four_steep, "complexity") == {"complex_smaller_f": "supported"}
    assert verdicts(one_steep, "complexity") == {"complex_smaller_f": "contradicted"}


def test_every_claim_is_of_a_study_that_is_there() -> None:
    from ldmlab.config.search import group_options

    assert {study for claim in claims() for study in claim.studies} <= set(group_options("sweeps"))


def test_advice_names_the_best_what_ties_and_what_deciding_costs() -> None:
    truth = {1: 1.0, 4: 0.0, 8: 0.06, 16: 1.0}
    found = advise(drawn(np.random.default_rng(6), truth, (2, 2, 1), 0.03, 0.05, 0.01))
    assert found is not None and found.take.f == 4
    assert [arm.f for arm in found.ruled_out] == [1, 16]
    ((tied, price),) = found.tied
    assert tied.f == 8 and price is not None and 2 <= price.times <= 32
    assert price.seconds == pytest.approx((price.times - 1) * 8 * 600.0)  # four trainings of 600 s in each arm


def test_the_price_holds_when_it_is_paid() -> None:
    """With as many times the denoiser seeds as were named the two arms are told apart, in most studies of this truth."""
    truth, decided, prices = {4: 0.0, 8: 0.12}, [], []
    for n in range(20):
        first = advise(drawn(np.random.default_rng(n), truth, (1, 2, 1), 0.0, 0.08, 0.005))
        if first is None or not first.tied or first.tied[0][1] is None:
            continue
        prices.append(first.tied[0][1].times)
    seeds = 2 * round(float(np.median(prices)))
    for n in range(20):
        again = advise(drawn(np.random.default_rng(100 + n), truth, (1, seeds, 1), 0.0, 0.08, 0.005))
        decided.append(again is not None and not again.tied)
    assert len(prices) > 8 and np.mean(decided) > 0.6, (prices, decided)
