"""What longer training would bring: a power law through two snapshots, each arm's own.

FID(n) = a n^-b through a share h of the training and its end has, after `times` as many images,

    ln FID = ln FID(1) + r (ln FID(1) - ln FID(h)),    r = ln(times) / ln(1/h).

So a prediction is a combination of cells like any other, with an interval of seeds and images together (`components`), and arms are
compared by `best`. How far the law itself is from the truth is in no interval: a continued run shows it.
"""

import math
from typing import NamedTuple

from ldmlab.studies.best import Best, best
from ldmlab.studies.cells import Arm, CellTable
from ldmlab.studies.components import Interval

TWICE = 2.0


class Prediction(NamedTuple):
    """images: of training. arms: of the curve, each with its predicted ln FID. best: which of them would be the lowest."""

    images: int
    arms: tuple[tuple[Arm, Interval], ...]
    best: Best


def predict(table: CellTable, times: float = TWICE) -> Prediction | None:
    """None without a snapshot at about half of training, with one f, and where nothing was trained twice."""
    half, last = table.share("half"), table.share("last")
    if half is None or last is None:
        return None
    r = math.log(times) / math.log(last / half)
    nested = table.nested({"last": 1 + r, "half": -r})
    found = best(nested, tuple(arm.name for arm in table.curve)) if nested is not None else None
    if nested is None or found is None:
        return None
    arms = tuple((arm, interval) for arm in table.curve if (interval := nested.contrast({arm.name: 1.0})) is not None)
    end = next(point.images for point in table.cells[0].points if point.share == last)
    return Prediction(round(end * times), arms, found)
