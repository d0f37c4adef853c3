"""Scores of a task beside those of the null condition and of trivial answers: as lines of the terminal and as a section of the page."""

from typing import NamedTuple

from ldmlab.metrics.beside import SETS
from ldmlab.reports import document as doc
from ldmlab.reports import numbers, pictures
from ldmlab.reports.numbers import MetricDeclaration
from ldmlab.reports.records import Estimate, Run, StageRecord
from ldmlab.store.files import read_arrays

CEILING = "real images"  # what a judge makes of the true images: not to be beaten


class MeasuredSets(NamedTuple):
    """One measure of the samples, and the same of each set beside them by its name."""

    metric: MetricDeclaration
    score: Estimate
    others: dict[str, Estimate]

    def apart(self) -> tuple[list[str], list[str]]:
        """The sets that the samples are better than outside both intervals, and the others; real images are not asked."""
        better: list[str] = []
        rest: list[str] = []
        for name, other in self.others.items():
            ahead = (other.value < self.score.value) == (self.metric.better == "higher")
            if name != CEILING:
                (better if ahead and not self.score.overlaps(other) else rest).append(name)
        return better, rest


def compared(record: StageRecord) -> list[MeasuredSets]:
    """The measures of a scores stage that have something beside them."""
    others: dict[str, dict[str, Estimate]] = {}
    for key, said in record.declared.items():
        if said.get("beside") and key in record.scores:
            others.setdefault(said["measure"], {})[str(said["beside"])] = record.scores[key]
    return [
        MeasuredSets(numbers.declaration(key, record.declared), record.scores[key], found)
        for key, found in others.items()
        if key in record.scores
    ]


def lines(record: StageRecord) -> list[str]:
    """ "mIoU 0.41 [0.40, 0.42]   null condition 0.07 [0.06, 0.08] …" for each measure, as it is stored."""
    return [
        "   ".join([f"{c.metric.label} {numbers.plain_said(c.score)}{c.metric.raw_unit}"]
                   + [f"{name} {numbers.plain_said(other)}" for name, other in c.others.items()])
        for c in compared(record)
    ]  # fmt: skip


def sections(runs: list[Run]) -> list[doc.Section]:
    """A table for the last scores of each run that have something beside them: a row a set, a column a measure."""
    found: list[doc.Section] = []
    for run in runs:
        record = run.last_scored.scores if run.last_scored is not None else None
        measures = compared(record) if record is not None else []
        if record is None or not measures:
            continue
        names = list(dict.fromkeys(name for c in measures for name in c.others))
        rows = [[doc.Entry("samples"), *(doc.Entry(*numbers.shown(c.score, c.metric.factor)) for c in measures)]]
        rows += [[doc.Entry(name), *(_cell(c, name) for c in measures)] for name in names]
        title = "Beside the null condition and trivial answers"
        table = doc.Table(["", *(c.metric.head for c in measures)], rows, "" if len(runs) == 1 else run.label)
        verdict = doc.Paragraph(" ".join(_verdict(c) for c in measures), "small")
        name = f"beside-{len(found)}" if len(runs) > 1 else "beside"
        shown = _sets(run, record, name)
        found.append(doc.Section(title, [table, verdict, *shown], f"beside-{record.id}"))
    return found


def _sets(run: Run, record: StageRecord, name: str) -> list[doc.Block]:
    """The same conditions and noise in each set, the conditions first."""
    path = record.folder / SETS
    if not path.is_file():
        return []
    sets = read_arrays(path)
    n = len(next(iter(sets.values())))
    samples = run.last_scored.samples.pictures if run.last_scored and run.last_scored.samples else None
    seen = [samples.condition(i) for i in range(n)] if samples is not None else []
    rows = [("condition", "", seen, False)] if seen and all(picture is not None for picture in seen) else []
    rows += [(title, "", list(images), False) for title, images in sets.items()]
    return [pictures.strips(name, rows, 72), doc.Paragraph("Each column is one condition and one noise.", "small")]


def _cell(compared: MeasuredSets, name: str) -> doc.Entry:
    other = compared.others.get(name)
    return doc.Entry("–") if other is None else doc.Entry(*numbers.shown(other, compared.metric.factor))


def _verdict(c: MeasuredSets) -> str:
    better, rest = c.apart()
    said = [
        f"better than {', '.join(better)} outside both intervals" if better else "",
        f"not than {', '.join(rest)}" if rest else "",
    ]
    return f"{c.metric.label}: samples are {', '.join(part for part in said if part)}."
