"""Scores of a study's cells: the table, who cannot be told apart, differences from one baseline, and what follows in words.

Cards are compared without the fields that the study varies (`study_cells.STUDIED`): everything else must be equal.
Differences are paired by resampled image number (`tables.paired`): equal seeds and labels cancel where cells share them.
"""

import csv
import io
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from ldmlab.reports import tables
from ldmlab.reports.collect import Run, Score, StageRecord
from ldmlab.reports.study_cells import STUDIED, UNGUIDED, Cell, Line, Study
from ldmlab.reports.tables import PAIRED, SAMPLE_METRICS, Metric, Table, differences, distinguishable, paired

LEADING = SAMPLE_METRICS[0]  # FID: what the sentences are about
PAPERS = {"sampler": "ddim", "objective": "eps_linear", "ldm": "unet"}  # the paper's own choice of a knob begins so
REDUCED = 0.4  # of the baseline's evaluations: 20 of 50
MANY = 8  # cells beyond which pairs are compared along and across the lines, not each with each


def bare(record: StageRecord) -> StageRecord:
    """The record with the part of its card that all cells of a study must share."""
    return replace(record, card={name: value for name, value in record.card.items() if name not in STUDIED})


def score_table(study: Study, runs: list[Run]) -> Table:
    """A row a cell, then the runs without scores. Bold: told from all others; tied: not told from the best."""
    entries = [tables.Entry(cell.run, bare(cell.scores), cell.label) for cell in study.cells]
    shown = {cell.run.id for cell in study.cells}
    known = {cell.scores.id for cell in study.cells}
    for run in runs:
        record = run.stage("scores")
        if run.id not in shown and (record is None or record.id not in known):
            waiting = next((f"{stage.stage} {stage.state}" for stage in run.unfinished), "not scored")
            entries.append(
                tables.Entry(run, None, run.label, None, False, waiting, run.stages[-1] if run.stages else None)
            )
    table = tables.join("Generated images", SAMPLE_METRICS, entries)
    notes = tuple(
        (mark, text) for mark, text in table.notes if not text.startswith(("Not distinguishable", "Bold:"))
    )  # said below of all pairs
    return mark(replace(table, notes=notes, card_short=""))


def mark(table: Table) -> Table:
    """Per column: bold the best where it can be told from every other row, otherwise the best and all that cannot be
    told from it are tied."""
    columns = []
    for i, metric in enumerate(table.metrics):
        cells = [row.cells[i] for row in table.rows]
        ranked = [c.score for c in cells if c.score is not None and not c.note]
        best = best_of(metric, ranked) if len(ranked) > 1 else None
        tied = [
            best is not None and c.score is not None and not c.note and (c.score is best or not distinguishable(best, c.score))
            for c in cells
        ]  # fmt: skip
        alone = sum(tied) == 1
        columns.append([replace(c, best=t and alone, tied=t and not alone) for c, t in zip(cells, tied, strict=True)])
    rows = [
        replace(row, cells=tuple(column[n] for column in columns)) for n, row in enumerate(table.rows)
    ]  # fmt: skip
    said = []
    if any(cell.best for row in rows for cell in row.cells):
        said.append(("", f"Bold: best of its column, told from every other row by {PAIRED}."))
    if any(cell.tied for row in rows for cell in row.cells):
        said.append(("", f"≈: the best of its column and what cannot be told from it by {PAIRED}."))
    return replace(table, rows=tuple(rows), notes=(*said, *table.notes))


def best_of(metric: Metric, scores: list[Score]) -> Score | None:
    if not metric.better or not scores:
        return None
    return (min if metric.better == "down" else max)(scores, key=lambda score: score.value)


# ---- differences ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """`cell` less `base` in one score, with its paired interval where both have replicates."""

    base: Cell
    cell: Cell
    metric: Metric
    score: Score

    @property
    def told(self) -> bool:
        return distinguishable(self.base.scores.scores[self.metric.key], self.cell.scores.scores[self.metric.key])

    @property
    def verdict(self) -> str:
        """better, worse, different (of a metric without a direction) or not distinguishable."""
        if not self.told:
            return "not distinguishable"
        if not self.metric.better:
            return "different"
        return "better" if (self.score.value < 0) == (self.metric.better == "down") else "worse"

    @property
    def text(self) -> str:
        """+1.2 [0.4, 2.0]"""
        value, interval = tables.shown(self.score, self.metric.factor)
        return " ".join(part for part in (f"+{value}" if self.score.value > 0 else value, interval) if part)


def difference(base: Cell, cell: Cell, metric: Metric) -> Difference | None:
    """None where either lacks the score or their protocols differ in more than the study varies."""
    one, other = base.scores.scores.get(metric.key), cell.scores.scores.get(metric.key)
    if one is None or other is None or differences(bare(base.scores).card, bare(cell.scores).card):
        return None
    return Difference(base, cell, metric, paired(one, other) or Score(other.value - one.value))


def metrics_of(study: Study) -> list[Metric]:
    return [m for m in SAMPLE_METRICS if any(m.key in cell.scores.scores for cell in study.cells)]


def baseline(study: Study) -> Cell:
    """What all cells are compared with: the paper's own choice where it is among them; of its line the most evaluations,
    or no guidance.
    """

    def rank(line: Line) -> int:
        first = line.cells[0].knobs
        return -sum(str(first[knob]).startswith(name) for knob, name in PAPERS.items() if knob in first)

    line = min(study.lines, key=rank)
    if study.axis is None:
        return line.cells[0]
    return line.cells[-1] if study.axis.knob == "steps" else line.cells[0]


def difference_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of every cell against the baseline; a cell is `value [low, high]`, with the verdict on the leading
    score."""
    base, metrics = baseline(study), metrics_of(study)
    rows = []
    for cell in study.cells:
        if cell is base:
            continue
        found = [difference(base, cell, metric) for metric in metrics]
        lead = found[0].verdict if found and found[0] is not None else "not comparable"
        rows.append([cell.label, *("–" if d is None else d.text for d in found), lead])
    return ["cell", *(f"Δ {m.head}" for m in metrics), f"in {metrics[0].label}" if metrics else ""], rows


# ---- who cannot be told apart ---------------------------------------------------------------------------------------------


def compared_pairs(study: Study) -> list[tuple[Cell, Cell]]:
    """Each with each while they are few; of many, neighbours along their line and lines at the same place."""
    if len(study.cells) <= MANY or study.axis is None:
        return list(combinations(study.cells, 2))
    along = [pair for line in study.lines for pair in pairwise(line.cells)]
    knob = study.axis.knob
    across = [
        (a, b)
        for one, two in combinations(study.lines, 2)
        for a in one.cells
        for b in two.cells
        if a.knobs[knob] == b.knobs[knob] and a is not b
    ]
    return list({(a.scores.id, b.scores.id): (a, b) for a, b in [*along, *across]}.values())


def indistinct(study: Study) -> list[tuple[Metric, list[tuple[Cell, Cell]]]]:
    """For each score the compared pairs that cannot be told apart."""
    found = []
    for metric in metrics_of(study):
        pairs = [
            (a, b)
            for a, b in compared_pairs(study)
            if (d := difference(a, b, metric)) is not None and not d.told
        ]  # fmt: skip
        if pairs:
            found.append((metric, pairs))
    return found


def ties(study: Study) -> list[str]:
    """One sentence a score; of many cells how many of the compared pairs, for ≈ in the table says the rest."""
    if len(study.cells) <= MANY or study.axis is None:
        return [
            f"Not distinguishable in {metric.label} by {PAIRED}: {'; '.join(f'{a.label} and {b.label}' for a, b in pairs)}."
            for metric, pairs in indistinct(study)
        ]
    total = len(compared_pairs(study))
    return [
        f"Not distinguishable in {metric.label} by {PAIRED}: {len(pairs)} of {total} pairs (neighbours of a line, and lines "
        f"at equal {study.axis.knob})."
        for metric, pairs in indistinct(study)
    ]


# ---- sentences ------------------------------------------------------------------------------------------------------------


def score_text(cell: Cell, metric: Metric = LEADING) -> str:
    value, interval = tables.shown(cell.scores.scores[metric.key], metric.factor)
    return " ".join(part for part in (value, interval) if part)


def verdicts(study: Study) -> list[str]:
    """What the study says of its leading score, in a few sentences."""
    cells = [cell for cell in study.cells if LEADING.key in cell.scores.scores]
    if len(cells) < 2:
        return []
    lead = [leader(cells)]
    if study.axis is None:
        return [*(lead if len(cells) > 2 else []), *against(study)]
    return [*lead, *(fewer(study) if study.axis.knob == "steps" else guided(study))]


def leader(cells: list[Cell]) -> str:
    best = min(cells, key=lambda cell: cell.scores.scores[LEADING.key].value)
    same = [
        cell
        for cell in cells
        if cell is not best and (d := difference(best, cell, LEADING)) is not None and not d.told
    ]  # fmt: skip
    rest = f"not distinguishable from it: {listed([c.label for c in same])}" if same else "told from every other cell"
    return f"Lowest {LEADING.label}: {best.label}, {score_text(best)}; {rest}."


def listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def fewer(study: Study) -> list[str]:
    """Each line at less than half of the baseline's evaluations against the baseline."""
    base = baseline(study)
    if base.evaluations is None or LEADING.key not in base.scores.scores:
        return []
    limit = REDUCED * base.evaluations
    found: dict[str, list[str]] = {}
    for line in study.lines:
        within = [cell for cell in line.cells if (cell.evaluations or 0) <= limit]
        d = difference(base, within[-1], LEADING) if within else None
        if d is not None:
            kind, own = ("worse", "") if d.verdict == "worse" else ("not worse", f"{score_text(d.cell)}, ")
            found.setdefault(kind, []).append(f"{d.cell.label} ({own}{d.text})")
    against = f"{base.label} ({LEADING.label} {score_text(base)})"
    return [
        f"At {limit:g} evaluations or fewer {kind} than {against} beyond the paired interval: {'; '.join(found[kind])}."
        for kind in ("not worse", "worse")
        if kind in found
    ]


def guided(study: Study) -> list[str]:
    """Each line: where the leading score is best against no guidance; what the others do from one end to the other. Then
    the lines against the first at equal guidance."""
    found = []
    for line in study.lines:
        name = f"{line.label[0].upper()}{line.label[1:]}: " if line.label and len(study.lines) > 1 else ""
        first, last = line.cells[0], line.cells[-1]
        moves = []
        for metric in metrics_of(study):
            d = difference(first, last, metric)
            if d is not None and metric.key in ("is", "precision", "recall", "label_agreement"):
                verb = "does not change measurably" if not d.told else "rises" if d.score.value > 0 else "falls"
                moves.append(f"{metric.label} {verb} ({d.text}{f' {metric.unit}' if metric.unit else ''})")
        best = min(line.cells, key=lambda cell: cell.scores.scores[LEADING.key].value)
        d = difference(first, best, LEADING)
        if d is not None and best is not first:
            least = f"{LEADING.label} is least at {best.knobs['guidance']:g}, {score_text(best)}, {d.verdict} "
            base = "no guidance" if first.knobs["guidance"] == UNGUIDED else f"guidance {first.knobs['guidance']:g}"
            least += f"{'than' if d.told else 'from'} {base} ({d.text})"
        else:
            least = f"{LEADING.label} is least at {first.knobs['guidance']:g}, {score_text(first)}"
        found.append(f"{name}{least}.")
        if moves:
            found.append(f"{name}from {first.knobs['guidance']:g} to {last.knobs['guidance']:g} {', '.join(moves)}.")
    return found + [text for line in study.lines[1:] for text in [across(study.lines[0], line)] if text]


def across(one: Line, two: Line) -> str:
    """The leading score of two lines wherever they are at the same guidance."""
    at = {cell.knobs["guidance"]: cell for cell in one.cells}
    found: dict[str, list[str]] = {}
    for cell in two.cells:
        base = at.get(cell.knobs["guidance"])
        d = difference(base, cell, LEADING) if base is not None and base is not cell else None
        if d is not None:
            found.setdefault(d.verdict, []).append(f"{cell.knobs['guidance']:g}")
    said = "; ".join(f"{verdict} at {', '.join(places)}" for verdict, places in found.items())
    return f"{LEADING.label} {two.label} against {one.label}, at equal guidance: {said}." if said else ""


def against(study: Study) -> list[str]:
    """Every cell against the baseline, by verdict."""
    base = baseline(study)
    found: dict[str, list[str]] = {}
    for cell in study.cells:
        d = difference(base, cell, LEADING) if cell is not base else None
        if d is not None:
            found.setdefault(d.verdict, []).append(f"{cell.label} ({d.text})")
    said = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in found.items())
    return [f"{LEADING.label} against {base.label}, {score_text(base)}: {said}."] if said else []


# ---- in full precision ----------------------------------------------------------------------------------------------------


def write_csv(study: Study) -> str:
    """A line per cell: its knobs, its place, every score with its interval, and its difference from the baseline."""
    metrics, base = metrics_of(study), baseline(study)
    numbers = [
        f"{m.key}{end}" for m in metrics for end in ("", "_low", "_high", "_less_baseline", "_less_low", "_less_high")
    ]
    out = io.StringIO()
    names = ["cell", *study.knobs, "evaluations", "images", "baseline", "run_id", "stage_id", "folder", *numbers]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for cell in study.cells:
        values: list[Any] = []
        for metric in metrics:
            score, d = cell.scores.scores.get(metric.key), difference(base, cell, metric)
            for found in (score, None if d is None or cell is base else d.score):
                values += (
                    ["", "", ""] if found is None else [_plain(found.value), _plain(found.low), _plain(found.high)]
                )
        writer.writerow(
            [
                cell.label, *("" if cell.knobs[k] is None else cell.knobs[k] for k in study.knobs), cell.evaluations or "",
                cell.scores.snapshot_images or "", "yes" if cell is base else "no", cell.run.id, cell.scores.id,
                cell.scores.place, *values,
            ]
        )  # fmt: skip
    return out.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)
