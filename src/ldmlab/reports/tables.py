"""Scores as tables: a row per run and snapshot, every number with its interval, only equal protocols side by side.

A cell whose protocol differs from its column's is marked with the field that differs; the best of a column is bold only
where it is distinguishable from every other row. `ScoreTable` is plain records: `shown_table` rounds them for a page, `csv_rows`
gives them in full precision.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ldmlab.metrics.protocol import leaf_differences
from ldmlab.reports import numbers
from ldmlab.reports.document import Entry, Look, Note, Table
from ldmlab.reports.numbers import OVERLAP, PAIRED, MetricDeclaration
from ldmlab.reports.records import Estimate, Run, StageRecord, is_number

FEW_SAMPLES = 10_000  # below, FID is biased visibly
NOTE_MARKS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class ScoreCell:
    score: Estimate | None
    text: str  # "12.3", or why there is no number
    interval: str = ""  # "[11.9, 12.8]"
    note: str = ""  # mark of the note that says which field of the protocol differs
    best: bool = False
    tied: bool = False  # not distinguishable from the best of its column


class Scored(NamedTuple):
    """What becomes a row: the scores, or why there are none yet."""

    run: Run
    record: StageRecord | None
    label: str
    images: int | None = None
    final: bool = True  # takes part in the ranking
    waiting: str = "not scored"
    source: StageRecord | None = None  # where the row leads when there is no record


@dataclass(frozen=True)
class ScoreRow:
    run: Run
    source: StageRecord | None  # the stage the numbers come from
    label: str
    images: int | None
    final: bool
    cells: tuple[ScoreCell, ...]


@dataclass(frozen=True)
class ScoreTable:
    title: str
    metrics: tuple[MetricDeclaration, ...]
    rows: tuple[ScoreRow, ...]
    card_short: str
    notes: tuple[Note, ...] = ()

    @property
    def has_snapshots(self) -> bool:
        return any(row.images is not None for row in self.rows)

    def only(self, keys: tuple[str, ...]) -> "ScoreTable":
        """The same rows with some of the metrics, in the order of `keys`."""
        order = [i for key in keys for i, metric in enumerate(self.metrics) if metric.key == key]
        rows = tuple(replace(row, cells=tuple(row.cells[i] for i in order)) for row in self.rows)
        return replace(self, metrics=tuple(self.metrics[i] for i in order), rows=rows)


def unlike(record: StageRecord, metric: str, card: dict[str, Any]) -> str:
    """ "steps: 20 (others: 50)" for each field that differs; "" when the protocols are equal."""

    def at(place: Any, path: str) -> str:
        for name in path.split("."):
            place = place.get(name) if isinstance(place, dict) else None
        return "not stated" if place is None else numbers.option(place)

    own = record.protocol(metric)
    return "; ".join(f"{path}: {at(own, path)} (others: {at(card, path)})" for path in leaf_differences(card, own))


def join(title: str, rows: list[Scored], default: str) -> ScoreTable:
    """One table of the scores of all rows: the metrics somebody measured (`default` when nobody did), each column on the
    protocol that most share, with notes on what differs from it.
    """
    records = [row.record for row in rows if row.record is not None and row.record.done]
    metrics = numbers.metrics_of(records) or [numbers.KNOWN[default]]
    cards = {metric.key: numbers.common_card(records, metric.key) for metric in metrics}
    marks: dict[str, str] = {}

    def cell(row: Scored, i: int, metric: MetricDeclaration) -> ScoreCell:
        if row.record is None or not row.record.done:
            waiting = row.waiting if row.record is None else row.record.state
            return ScoreCell(None, "–" if i else waiting)
        score = row.record.scores.get(metric.key)
        if score is None:
            return ScoreCell(None, "–")
        gap = unlike(row.record, metric.key, cards[metric.key])
        mark = marks.setdefault(gap, NOTE_MARKS[len(marks) % 26] * (len(marks) // 26 + 1)) if gap else ""
        return ScoreCell(score, *numbers.shown(score, metric.factor), mark)

    made = tuple(
        ScoreRow(
            row.run, row.record or row.source, row.label, row.images, row.final,
            tuple(cell(row, i, metric) for i, metric in enumerate(metrics)),
        )
        for row in rows
    )  # fmt: skip
    notes = [Note("comparability", f"Not comparable with the other rows. {gap}.", mark) for gap, mark in marks.items()]
    notes += bias_note(records)
    notes += warning_notes(rows)
    short = next((r.card_short for r in records if not unlike(r, metrics[0].key, cards[metrics[0].key])), "")
    return rank(ScoreTable(title, tuple(metrics), made, short, tuple(notes)))


def warning_notes(rows: list[Scored]) -> list[Note]:
    """Each warning of the scores once, with the rows that it is of where other scored rows have it not."""
    scored = [(row, row.record) for row in rows if row.record is not None and row.record.done]
    found: dict[str, list[str]] = {}
    for row, record in scored:
        name = row.label if row.images is None else f"{row.label}, {numbers.count(row.images)} images"
        for text in record.warnings:
            found.setdefault(text if text.endswith(".") else f"{text}.", []).append(name)
    return [
        Note("warning", text if len(names) == len(scored) else f"{'; '.join(names)}: {text}")
        for text, names in found.items()
    ]


def bias_note(records: list[StageRecord]) -> list[Note]:
    """Why FID and FID∞ of few samples differ, where both are there."""
    both = [r for r in records if {"fid", "fid_infinity"} <= r.scores.keys() and is_number(r.card.get("samples"))]
    few = sorted({r.card["samples"] for r in both if r.card["samples"] < FEW_SAMPLES})
    if not few:
        return []
    n = " and ".join(map(numbers.count, few))
    why = f"FID of {n} samples is biased upwards, and FID∞ estimates its limit for infinitely many samples"
    return [Note("remark", f"FID and FID∞ differ because {why}; compare FID at equal N only.")]


def rank(table: ScoreTable) -> ScoreTable:
    """Bold is the best of a column that is distinguishable from every other final row; otherwise the best and all that is
    not distinguishable from it are tied, and a note names them.
    """
    rows, ties, rules = [list(row.cells) for row in table.rows], dict[str, list[str]](), set[str]()
    for i, metric in enumerate(table.metrics):
        ranked = {
            n: score
            for n, row in enumerate(table.rows)
            if row.final and not row.cells[i].note and (score := row.cells[i].score) and not math.isnan(score.value)
        }
        if len(ranked) < 2 or not metric.better:
            continue
        best = best_of(metric, list(ranked.values()))
        rules |= {OVERLAP if numbers.paired(best, score) is None else PAIRED for score in ranked.values()}
        tied = [n for n, score in ranked.items() if score is best or not numbers.distinguishable(best, score)]
        for n in tied:
            rows[n][i] = replace(rows[n][i], best=len(tied) == 1, tied=len(tied) > 1)
        if len(tied) > 1:
            ties.setdefault(listed([table.rows[n].label for n in tied]), []).append(metric.label)
    rule, notes = " or ".join(sorted(rules)), list(table.notes)
    if any(cell.best for row in rows for cell in row):
        notes.append(Note("ranking", f"Bold: best of its column, distinguishable from every other row by {rule}."))
    if ties:
        notes.append(
            Note("ranking", f"≈: the best of its column and all that is not distinguishable from it by {rule}.")
        )
        pairs = "; ".join(f"{names} in {', '.join(metrics)}" for names, metrics in ties.items())
        notes.append(Note("tie", f"Not distinguishable by {rule}: {pairs}."))
    made = tuple(replace(row, cells=tuple(cells)) for row, cells in zip(table.rows, rows, strict=True))
    return replace(table, rows=made, notes=tuple(notes))


def best_of(metric: MetricDeclaration, scores: list[Estimate]) -> Estimate:
    return (min if metric.better == "lower" else max)(scores, key=lambda score: score.value)


def listed(names: list[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def samples_table(runs: list[Run]) -> ScoreTable | None:
    """Scores of generated images: per run one row per snapshot, earliest first. None when no run has a samples or
    scores stage.
    """
    rows = []
    for run in runs:
        for snapshot in run.snapshots:
            samples = snapshot.samples
            waiting = samples.state if samples is not None and not samples.done else "not scored"
            final = snapshot is run.last_scored
            rows.append(Scored(run, snapshot.scores, run.label, snapshot.images, final, waiting, samples))
    return join("Generated images", rows, "fid") if rows else None


def first_stage_table(runs: list[Run], title: str = "First stage") -> ScoreTable | None:
    """Reconstruction quality and latents of each run's autoencoder; runs that share one are one row. None without
    autoencoders.
    """
    shared: dict[str, list[Run]] = {}
    stages: dict[str, StageRecord] = {}
    for run in runs:
        if run.first_stage is not None:
            shared.setdefault(run.first_stage.id, []).append(run)
            stages[run.first_stage.id] = run.first_stage
    rows = [
        Scored(shared[id_][0], record, ", ".join(run.label for run in shared[id_]), final=record.done)
        for id_, record in stages.items()
    ]
    return join(title, rows, "psnr") if rows else None


Labels = Callable[[ScoreRow], list[Entry]]


def shown_table(table: ScoreTable, heads: list[str] | None = None, labels: Labels | None = None) -> Table:
    """The table as a page shows it. heads and labels: of the columns before the scores, instead of the run, its stage and
    its snapshot.
    """

    def own(row: ScoreRow) -> list[Entry]:
        source = row.source
        first = Entry(row.label, href=f"#{source.anchor}" if source else "", under=source.place if source else "")
        return [first, *([Entry(numbers.count(row.images))] if table.has_snapshots else [])]

    def entry(cell: ScoreCell) -> Entry:
        state = cell.score is None and cell.text != "–"
        look: Look = "state" if state else "best" if cell.best else "tied" if cell.tied else ""
        return Entry(cell.text, cell.interval, cell.note, look)

    before = heads or ["run", *(["training images"] if table.has_snapshots else [])]
    rows = [[*(labels or own)(row), *map(entry, row.cells)] for row in table.rows]
    notes = [*table.notes, *([Note("protocol", f"Protocol: {table.card_short}.")] if table.card_short else [])]
    faint = frozenset(n for n, row in enumerate(table.rows) if not row.final and row.cells[0].score is not None)
    if covered := numbers.by_words(table.metrics, "covers"):
        notes.append(Note("interval", f"What the 95 % intervals cover. {covered}."))
    all_heads = [*before, *(metric.head for metric in table.metrics)]
    return Table(
        all_heads, rows, table.title, 1, notes, "" if heads else "stage", faint, interval_heads(table, before[0])
    )


def interval_heads(table: ScoreTable, first: str) -> dict[str, tuple[str, str]]:
    """For heads of the table: what the 95 % interval is over, and covers. Under `first` alone where all metrics share it."""
    words = {metric.interval for metric in table.metrics if metric.interval}
    shared = {first: (f"[95 % interval {words.pop()}]", "")} if len(words) == 1 else {}
    own = {m.head: ("" if shared else f"[{m.interval}]", m.covers) for m in table.metrics if m.interval}
    return shared | own


def csv_rows(tables: list[ScoreTable]) -> list[dict[str, Any]]:
    """Every number in full precision: a record per row, columns <metric>, <metric>_low, <metric>_high; then those of the sets beside the
    samples (`reports.beside`)."""
    records = []
    for table in tables:
        for row in table.rows:
            record: dict[str, Any] = {
                "table": table.title, "run": row.label, "run_id": row.run.id, "images": row.images, "stage": "",
                "stage_id": "", "folder": "", "state": "", "protocol": "", "card_differs_in": "",
            }  # fmt: skip
            if source := row.source:
                record |= {"stage": source.stage, "stage_id": source.id, "folder": source.place, "state": source.state}
                marks = {note.mark: note.text for note in table.notes if note.kind == "comparability"}
                gaps = dict.fromkeys(marks[cell.note] for cell in row.cells if cell.note)
                said = [text.removeprefix("Not comparable with the other rows. ").removesuffix(".") for text in gaps]
                record |= {"protocol": source.card_short, "card_differs_in": "; ".join(said)}
            for metric, cell in zip(table.metrics, row.cells, strict=True):
                record |= score_columns(metric.key, cell.score)
            declared = source.declared if source else {}
            for key in [name for name, said in declared.items() if said.get("beside")]:
                record |= score_columns(key, source.scores.get(key) if source else None)
            records.append(record)
    return records


def score_columns(
    name: str, score: Estimate | None, ends: tuple[str, str, str] = ("", "_low", "_high")
) -> dict[str, Any]:
    """Value and interval of a score as columns of a CSV."""
    values = (None, None, None) if score is None else (score.value, score.low, score.high)
    return {f"{name}{end}": value for end, value in zip(ends, values, strict=True)}


def varied_table(labels: list[str], varied: dict[str, list[Any]]) -> Table:
    """The options that differ, a column a run."""
    rows = [[path, *map(numbers.option, values)] for path, values in varied.items()]
    return Table(
        ["option", *labels], [[Entry(text, look="code") for text in row] for row in rows], left=len(labels) + 1
    )


def stages_table(records: list[StageRecord], anchors: set[str]) -> Table:
    """Stages with their states. anchors: the places that links lead to; each is used up by its first row."""
    rows = []
    for r in records:
        place = r.anchor if r.anchor in anchors else ""
        anchors.discard(r.anchor)
        first = [Entry(r.stage, anchor=place), Entry(r.id, look="code"), Entry(r.state, look="" if r.done else "state")]
        rows.append([*first, Entry(r.what), Entry(r.place, look="code"), Entry(numbers.seconds(r.seconds))])
    return Table(["stage", "id", "state", "what", "folder in the store", "time"], rows, left=5)
