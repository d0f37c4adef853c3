"""What twice the training would bring to each f, as a table of the page (`ldmlab.studies.prediction`)."""

import math

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.compression import COMBINED, arm_interval, called
from ldmlab.studies.cells import CellTable
from ldmlab.studies.components import Interval
from ldmlab.studies.prediction import TWICE, predict

LAW = (
    f"Predicted: each f's own power law in the number of images, through half and the end of its training; {COMBINED}. Whether FID follows "
    "such a law is in no interval. Where the learning rate falls before the end but not before the half (eval.cooldown=null), what that "
    "fall brought is continued too. Lowest in: share of the draws of cells like these."
)


def blocks(table: CellTable) -> list[doc.Block]:
    """Each f at half, at the end, and after twice the images."""
    found, half, last = predict(table), table.share("half"), table.share("last")
    if found is None or half is None or last is None:
        return []
    rows = [
        [
            called(arm, table),
            *(_fid(arm_interval(table.at(share), arm)) for share in (half, last)),
            _fid(interval),
            f"{found.best.share[arm.name]:.0%}",
        ]
        for arm, interval in found.arms
    ]
    after = [f"FID after {numbers.count(round(found.images / TWICE * share / last))}" for share in (half, last)]
    heads = ["first stage", *after, f"predicted after {numbers.count(found.images)}", "lowest in"]
    return [doc.Table(heads, doc.entries(rows)), doc.Paragraph(LAW, "small")]


def _fid(interval: Interval) -> str:
    value, low, high = (numbers.plain(math.exp(x)) for x in interval[:3])
    return f"{value} [{low}, {high}]"
