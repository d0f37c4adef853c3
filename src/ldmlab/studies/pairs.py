"""Arms of one f compared: what a schedule, a scale or a regulariser does where the compression is the same.

Arms of one first stage (two schedules, say) are compared seed by seed: cells of equal seeds begin from the same weights and see the
same batches, so that much of what a seed does to both cancels in their difference. With A such arms, seeds s and y = ln of the score,

    z_cs = sum_a h_ca y_as,    h the A - 1 orthonormal Helmert contrasts,

are what differs between arms; their variances between seeds nest as those of y do (`components.Nested`), and the difference of two arms
is a combination of their means. This holds whether or not seeds have anything in common; where they have not, it costs degrees of
freedom. So arms of different first stages, whose latents differ, are compared as unpaired means instead.
"""

from collections.abc import Callable, Hashable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.linalg import helmert

from ldmlab.studies.cells import TREATMENT, Arm, CellTable
from ldmlab.studies.components import Interval, Nested

MANY = 4  # arms of one f beyond which each is compared with the first alone
ROUNDING = 1e-14


class Pair(NamedTuple):
    """interval: ln of the score of `arm` less that of `beside` after all of the training, 95 % over images and seeds together.
    by_seed: whether cells of equal seeds were compared.
    """

    arm: Arm
    beside: Arm
    interval: Interval
    by_seed: bool


def pairs(table: CellTable) -> list[Pair]:
    """Every two arms of one f and pictures of one kind, by f; none where nothing was trained twice."""
    nested = table.nested({"last": 1.0})
    if nested is None or not nested.retrained:
        return []
    blocks = Blocks(table, nested)
    found = []
    for arms in _together(table.arms, lambda arm: (arm.f, _pictures(arm))):
        for beside, arm in combinations(arms, 2) if len(arms) <= MANY else ((arms[0], other) for other in arms[1:]):
            by_seed = blocks.difference(arm, beside)
            interval = by_seed or nested.contrast({arm.name: 1.0, beside.name: -1.0})
            assert interval is not None  # something was trained twice
            found.append(Pair(arm, beside, interval, by_seed is not None))
    return found


class Blocks:
    """The differences between arms of one first stage whose cells have equal seeds, all such arms of a study together."""

    def __init__(self, table: CellTable, nested: Nested):
        self._weights: dict[Arm, dict[str, float]] = {}  # of each block's contrasts in an arm's own mean
        self._block: dict[Arm, int] = {}
        rows = [row for row in self._contrasts(table) if _differs(row[2], nested)]
        self._nested: Nested | None = None
        if rows:
            cells, w_MN = [table.cells[row[1]] for row in rows], np.array([row[2] for row in rows])
            self._nested = Nested(
                tuple(row[0] for row in rows),
                tuple(str(cell.first_seed) if cell.trained else "closed form" for cell in cells),
                tuple(str(cell.denoiser_seed) for cell in cells),
                tuple(cell.trained for cell in cells),
                w_MN @ nested.y_N,
                w_MN @ nested.covariance_NN @ w_MN.T,
            )  # fmt: skip

    def _contrasts(self, table: CellTable) -> Iterator[tuple[str, int, np.ndarray]]:
        """(name of the contrast, a cell of its seeds, its weight of every cell) for each contrast and each set of seeds."""
        same = _together(table.arms, lambda arm: (arm.first_stage, arm.f, arm.c, _pictures(arm)))
        for block, arms in enumerate(same):
            places = [
                {(c.first_seed, c.denoiser_seed, c.sampling_seed): n for n, c in enumerate(table.cells) if c.arm == arm}
                for arm in arms
            ]
            if len(arms) < 2 or not arms[0].first_stage or any(each.keys() != places[0].keys() for each in places):
                continue
            h_CA = helmert(len(arms))
            for a, arm in enumerate(arms):
                self._block[arm] = block
                self._weights[arm] = {f"{block}/{c}": float(h) for c, h in enumerate(h_CA[:, a])}
            for c, h_A in enumerate(h_CA):
                for seeds, first in places[0].items():
                    weight_N = np.zeros(len(table.cells))
                    weight_N[[each[seeds] for each in places]] = h_A
                    yield f"{block}/{c}", first, weight_N

    def difference(self, arm: Arm, beside: Arm) -> Interval | None:
        """None where the two are not of one block, or no seed was varied in any. Arms of equal scores differ by nothing at all."""
        if arm not in self._block or self._block[arm] != self._block.get(beside):
            return None
        one, other = self._weights[arm], self._weights[beside]
        if self._nested is None or not set(one) & set(self._nested.arm_N):
            return Interval(0.0, 0.0, 0.0, np.inf)
        return self._nested.contrast({name: one[name] - other[name] for name in one})


def _differs(weight_N: np.ndarray, nested: Nested) -> bool:
    """Whether the weighted cells differ by more than rounding, in value or in any resample of the images."""
    return bool(weight_N @ nested.covariance_NN @ weight_N > ROUNDING or abs(weight_N @ nested.y_N) > ROUNDING)


def _pictures(arm: Arm) -> str:
    return repr(sorted((name, repr(value)) for name, value in arm.facts.items() if name != TREATMENT))


def _together(arms: tuple[Arm, ...], key: Callable[[Arm], Hashable]) -> list[list[Arm]]:
    """The arms with one key, in order of appearance."""
    found: dict[Hashable, list[Arm]] = {}
    for arm in arms:
        found.setdefault(key(arm), []).append(arm)
    return list(found.values())
