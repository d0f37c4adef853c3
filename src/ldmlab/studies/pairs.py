"""Arms of one f compared: what a schedule, a scale or a regulariser does where the compression is the same."""

from itertools import combinations
from typing import NamedTuple

from ldmlab.studies.cells import TREATMENT, Arm, CellTable
from ldmlab.studies.components import Interval

MANY = 4  # arms of one f beyond which each is compared with the first alone


class Pair(NamedTuple):
    """interval: ln of the score of `arm` less that of `beside` after all of the training, 95 % over images and seeds together."""

    arm: Arm
    beside: Arm
    interval: Interval


def pairs(table: CellTable) -> list[Pair]:
    """Every two arms of one f and pictures of one kind, by f; none where nothing was trained twice."""
    nested = table.nested({"last": 1.0})
    if nested is None or not nested.retrained:
        return []
    groups: dict[str, list[Arm]] = {}
    for arm in table.arms:
        pictures = sorted((name, repr(value)) for name, value in arm.facts.items() if name != TREATMENT)
        groups.setdefault(repr((arm.f, pictures)), []).append(arm)
    found = []
    for arms in groups.values():
        each = combinations(arms, 2) if len(arms) <= MANY else ((arms[0], other) for other in arms[1:])
        for beside, arm in each:
            interval = nested.contrast({arm.name: 1.0, beside.name: -1.0})
            assert interval is not None  # something was trained twice
            found.append(Pair(arm, beside, interval))
    return found
