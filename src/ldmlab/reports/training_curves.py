"""FID and IS of a study of f over images, operations and time of training, and what it takes until a FID is reached."""

from collections.abc import Callable
from typing import NamedTuple

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.compression import COMBINED, arm_line, named
from ldmlab.reports.figures import TRAINING, Figure, score_panel
from ldmlab.reports.numbers import KNOWN
from ldmlab.studies.cells import Arm, Cell, CellTable, Point
from ldmlab.studies.reach import levels, reach

MOST = 7  # lines that a panel holds
STEEP = 4.0
REACHED = (
    "TFLOP of training until FID is at most k, between snapshots in proportion (ln FID over ln FLOP); brackets: where the interval's two "
    "ends are as low, – not within this training. ≤: as low at the first snapshot already. k is where the worst, a middle and the best f "
    "end, rounded up."
)


class CurveAxis(NamedTuple):
    """of: a cell at one of its snapshots → x, None where nobody knows."""

    short: str
    title: str
    of: Callable[[Cell, Point], float | None]


def _flops(cell: Cell, point: Point) -> float | None:
    return None if cell.flops is None else cell.flops * point.share / 1e12


def _all_flops(cell: Cell, point: Point) -> float | None:
    own = _flops(cell, point)
    return None if own is None or cell.first_stage_flops is None else own + cell.first_stage_flops / 1e12


AXES = (
    CurveAxis("images", TRAINING, lambda cell, point: float(point.images)),
    CurveAxis("flops", "training TFLOP, first stage not counted", _flops),
    CurveAxis("all-flops", "training TFLOP with the first stage", _all_flops),
    CurveAxis("seconds", "seconds of the denoiser's training, measured", lambda cell, point: point.seconds),
)


def drawn(table: CellTable) -> tuple[Arm, ...]:
    """The arms of the figures: all, or the curve over f alone where they are many."""
    return table.arms if len(table.arms) <= MOST else table.curve


def place(table: CellTable, arm: Arm, share: float, axis: CurveAxis) -> float | None:
    """Mean over the arm's cells; None where one of them does not know."""
    found = [axis.of(cell, point) for cell in table.cells if cell.arm == arm and (point := cell.at(share)) is not None]
    known = [x for x in found if x is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def figures(tables: dict[str, CellTable]) -> list[Figure]:
    """A panel a score and axis, a line a first stage with a band over seeds; none with one snapshot."""
    made = [_figure(table, key, axis) for key, table in tables.items() for axis in AXES if len(table.shares) > 1]
    return [figure for figure in made if figure is not None]


def _figure(table: CellTable, key: str, axis: CurveAxis) -> Figure | None:
    series = []
    for arm in drawn(table):
        xs = [place(table, arm, share, axis) for share in table.shares]
        known = [x for x in xs if x is not None]
        if len(known) == len(xs):
            series.append(arm_line(table, arm, known))
    metric = KNOWN[key]
    if not series:
        return None
    title = f"{metric.label} of generated images"
    note = (
        f"Bands: {COMBINED}, the mean of an f's cells."
        if table.at(table.shares[-1]).retrained
        else "One seed: no band."
    )
    note += " The other first stages are in the table." if len(table.arms) > MOST and axis is AXES[0] else ""
    return score_panel(metric, series, f"-over-{axis.short}", title, note, STEEP, x=axis.title)


def reach_blocks(table: CellTable) -> list[doc.Block]:
    """FLOPs until FID is at most k, for a few k that the study itself reaches."""
    ks = levels(table) if len(table.shares) > 1 else []
    rows = []
    for arm in table.arms:
        own, whole = ([place(table, arm, share, axis) for share in table.shares] for axis in AXES[1:3])
        costs = [x for x in own if x is not None]
        if len(costs) < len(own) or not ks:
            continue
        before = None if whole[0] is None else whole[0] - costs[0]
        rows.append([named(arm, table), *(text for k in ks for text in _reached(table, arm, k, costs, before))])
    if not rows:
        return []
    heads = ["first stage", *(head for k in ks for head in (f"FID ≤ {k:g}", "with first stage"))]
    return [doc.Table(heads, doc.entries(rows)), doc.Paragraph(REACHED, "small")]


def _reached(table: CellTable, arm: Arm, k: float, costs: list[float], before: float | None) -> tuple[str, str]:
    found = reach(table, arm, k, costs)
    if found is None:
        return "–", "–"
    sign = "≤ " if found.below else ""
    ends = " [{}, {}]".format(*map(numbers.plain, (found.low, found.high))) if not found.below else ""
    return (
        f"{sign}{numbers.plain(found.cost)}{ends}",
        "–" if before is None else f"{sign}{numbers.plain(found.cost + before)}",
    )
