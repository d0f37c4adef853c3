"""What a person who must choose an f should know: which to take, which cannot be told from it, what deciding would cost."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from ldmlab.studies.best import Best, best
from ldmlab.studies.cells import Arm, CellTable
from ldmlab.studies.components import LEVEL, Nested

MOST = 32  # times the seeds or images of this study: beyond, the price is not named


class Price(NamedTuple):
    """How many times the seeds or images of this study would tell two arms apart, if their difference stays as it is.

    what: `denoiser seeds`, `first-stage seeds` (with their denoisers) or `images`. seconds: of training or sampling, both arms.
    """

    what: str
    times: int
    seconds: float | None


class Advice(NamedTuple):
    """take: the best arm; tied: those that cannot be told from it, each with the price of deciding; ruled_out: the others."""

    take: Arm
    tied: tuple[tuple[Arm, Price | None], ...]
    ruled_out: tuple[Arm, ...]
    best: Best


def advise(table: CellTable) -> Advice | None:
    """From the last snapshot's FID along the curve over f; None where nothing was trained twice or there is one f."""
    nested, curve = table.nested({"last": 1.0}), table.curve
    found = best(nested, tuple(arm.name for arm in curve)) if nested is not None else None
    if nested is None or found is None:
        return None
    by_name = {arm.name: arm for arm in curve}
    take = by_name[found.lowest]
    tied = tuple((by_name[name], price(table, nested, take, by_name[name])) for name in found.kept if name != take.name)
    return Advice(take, tied, tuple(arm for arm in curve if arm.name not in found.kept and arm is not take), found)


def price(table: CellTable, nested: Nested, one: Arm, two: Arm) -> Price | None:
    """The cheapest way to an interval of their difference that leaves out zero; None when none is found within `MOST` times."""
    w_N = nested.weights({two.name: 1.0, one.name: -1.0})
    first, denoiser, sampling = nested.parts(w_N)
    images = float(w_N @ nested.covariance_NN @ w_N)
    fixed = {
        "denoiser seeds": first,
        "first-stage seeds": 0.0,
        "images": first + denoiser,
    }  # what more of it does not lessen
    if not nested.df_K[1]:
        fixed.pop("denoiser seeds")
    if not nested.df_K[0]:
        fixed.pop("first-stage seeds")
    cells = [cell for cell in table.cells if cell.arm in (one, two)]
    apart, df, total = abs(float(w_N @ nested.y_N)), nested.df_of(w_N), first + denoiser + sampling + images
    found = []
    for what, rest in fixed.items():
        seconds = _sum([cell.sampling_seconds if what == "images" else cell.seconds for cell in cells])
        for n in range(2, MOST + 1):
            t = float(stats.t.ppf((1 + LEVEL) / 2, min(df if what == "images" else df * n, 1e6)))
            if t * np.sqrt(rest + (total - rest) / n) < apart:
                found.append(Price(what, n, None if seconds is None else (n - 1) * seconds))
                break
    return min(found, key=lambda each: (each.seconds or 0.0, each.times), default=None)


def _sum(seconds: list[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None
