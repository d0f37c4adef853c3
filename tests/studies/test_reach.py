"""Training until a score is reached: between snapshots a power law is met exactly."""

import math

import numpy as np
import pytest
from studies.tables import drawn

from ldmlab.studies.cells import CellTable
from ldmlab.studies.reach import levels, reach

COSTS = [2.0, 4.0, 8.0]


def falling(slope: dict[int, float]) -> CellTable:
    """FID = 100 · cost^-slope of each f at costs 2, 4, 8, the same in all seeds."""
    shares = {s: {f: -slope[f] * math.log(c) for f in slope} for s, c in zip((0.25, 0.5, 1.0), COSTS, strict=True)}
    truth = dict.fromkeys(slope, math.log(100.0))
    return drawn(np.random.default_rng(0), truth, (1, 2, 1), 0.0, 0.0, 1e-9, shares=shares)


def test_a_power_law_is_met_exactly() -> None:
    table = falling({4: 0.5, 8: 0.2})
    four, eight = table.curve
    for k in (45.0, 38.0):
        found = reach(table, four, k, COSTS)
        assert found is not None and not found.below
        assert found.cost == pytest.approx((100 / k) ** 2, rel=1e-6)
        assert found.low == pytest.approx(found.cost, rel=1e-4) and found.high == pytest.approx(found.cost, rel=1e-4)
    assert reach(table, eight, 45.0, COSTS) is None  # it ends at 66
    early = reach(table, four, 90.0, COSTS)
    assert early is not None and early.below and early.cost == 2.0


def test_the_interval_s_ends_say_from_when_to_when() -> None:
    rng = np.random.default_rng(1)
    shares = {s: {f: -0.5 * math.log(c) for f in (4, 8)} for s, c in zip((0.25, 0.5, 1.0), COSTS, strict=True)}
    table = drawn(rng, dict.fromkeys((4, 8), math.log(100.0)), (1, 3, 1), 0.0, 0.05, 0.01, shares=shares)
    found = reach(table, table.curve[0], 45.0, COSTS)
    assert found is not None and found.low is not None and found.low < found.cost
    assert found.high is None or found.high > found.cost


def test_levels_are_where_arms_end() -> None:
    table = falling({4: 0.5, 8: 0.2, 16: 0.3, 32: 0.1})
    ends = {f: 100 * 8**-slope for f, slope in {4: 0.5, 8: 0.2, 16: 0.3, 32: 0.1}.items()}
    ks = levels(table)
    assert ks == [82.0, 54.0, 36.0] and all(any(0 <= k - end < 1 for end in ends.values()) for k in ks)
    assert all(
        reach(table, arm, ks[0], COSTS) is not None for arm in table.curve
    )  # the worst level: every arm is there
