"""How much an arm needs until its score is at most k: between two snapshots in proportion, ln of the score over ln of the cost."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ldmlab.studies.cells import Arm, CellTable


class Reach(NamedTuple):
    """cost: where the mean crosses k. low, high: where the two ends of its interval do; None: not within this training.

    below: whether the mean is below k at the first snapshot already, so that its cost is at most `cost`.
    """

    cost: float
    low: float | None
    high: float | None
    below: bool


def levels(table: CellTable, most: int = 3) -> list[float]:
    """Where arms of the curve end, each rounded up to two digits: the worst, the best and what lies between. So one arm at least
    reaches each.
    """
    last = table.at(table.shares[-1])
    ends = sorted(
        {_rounded_up(math.exp(float(last.weights({arm.name: 1.0}) @ last.y_N))) for arm in table.curve}, reverse=True
    )
    if len(ends) <= most:
        return ends
    return [ends[round(i * (len(ends) - 1) / (most - 1))] for i in range(most)]


def _rounded_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / step - 1e-9) * step, 12)


def reach(table: CellTable, arm: Arm, k: float, costs: Sequence[float]) -> Reach | None:
    """costs: of the arm's training until each of `table.shares`. None where its mean never is as low."""
    nested = [table.at(share) for share in table.shares]
    found = [each.contrast({arm.name: 1.0}) for each in nested]
    means = [float(each.weights({arm.name: 1.0}) @ each.y_N) for each in nested]
    middle = _crossing(means, math.log(k), costs)
    if middle is None:
        return None
    low, high = (
        _crossing([getattr(each, end) for each in found if each is not None], math.log(k), costs)
        if all(found)
        else middle
        for end in ("low", "high")
    )
    return Reach(middle, low, high, means[0] <= math.log(k))


def _crossing(y_S: Sequence[float], level: float, costs: Sequence[float]) -> float | None:
    """Where y first comes down to the level."""
    for i, y in enumerate(y_S):
        if y <= level:
            if i == 0:
                return costs[0]
            share = (y_S[i - 1] - level) / (y_S[i - 1] - y)
            return math.exp(math.log(costs[i - 1]) + share * math.log(costs[i] / costs[i - 1]))
    return None
