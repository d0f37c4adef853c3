"""Results as tables: one row per run and snapshot, every number with its interval, only equal protocols side by side.

A cell whose protocol card differs from its table's is marked with the field that differs; the best of several runs is
named only when it can be told from the second. The table itself is plain records: `markdown` and the page write it
rounded, `write_csv` writes it in full precision.
"""

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ldmlab.reports.collect import Run, Score, StageRecord, flatten


class Metric(NamedTuple):
    """key: name in scores.json · label: column head · unit · better: direction, "" when neither · factor: what the
    number is multiplied by to be shown in that unit
    """

    key: str
    label: str
    unit: str = ""
    better: Literal["up", "down", ""] = ""
    factor: float = 1.0

    @property
    def arrow(self) -> str:
        return {"up": "↑", "down": "↓", "": ""}[self.better]

    @property
    def head(self) -> str:
        return " ".join(part for part in (self.label, f"({self.unit})" if self.unit else "", self.arrow) if part)


SAMPLE_METRICS = (
    Metric("fid", "FID", better="down"),
    Metric("is", "IS", better="up"),
    Metric("kid", "KID", "×10³", "down", factor=1000.0),
    Metric("precision", "precision", better="up"),
    Metric("recall", "recall", better="up"),
    Metric("label_agreement", "label agreement", "%", "up", factor=100.0),
)
FIRST_STAGE_METRICS = (
    Metric("psnr", "PSNR", "dB", "up"),
    Metric("ssim", "SSIM", better="up"),
    Metric("perceptual", "perceptual", better="down"),
    Metric("rfid", "rFID", better="down"),
    Metric("ris", "R-IS", better="up"),
    Metric("bits_per_pixel", "rate", "bit/pixel"),
    Metric("entropy_bits_per_pixel", "entropy", "bit/pixel"),
    Metric("kl_bits", "KL", "bit/element"),
    Metric("codebook_usage", "codebook used", "%", "up", factor=100.0),
    Metric("codebook_perplexity", "codebook perplexity", better="up"),
    Metric("latent_mean", "latent mean"),
    Metric("latent_std", "latent std"),
)
# A curve over training compares snapshots, a repetition compares seeds; every other field of a card must be equal.
MAY_DIFFER = ("snapshot_images", "seed")
FEWEST_REPLICATES = 20
PAIRED = "the paired 95 % interval of their difference"
OVERLAP = "overlap of their intervals (without stored replicates no paired interval, which would be narrower)"
NOTE_MARKS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Cell:
    score: Score | None
    text: str  # "12.3", or why there is no number
    interval: str = ""  # "[11.9, 12.8]"
    note: str = ""  # mark of the footnote that says which field of the card differs
    best: bool = False
    tied: bool = False  # cannot be told from the best of its column (`study_tables`)


@dataclass(frozen=True)
class Row:
    run: Run
    source: StageRecord | None  # the stage the numbers come from
    label: str
    images: int | None
    final: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    card: dict[str, Any]
    card_short: str
    notes: tuple[tuple[str, str], ...] = field(default_factory=tuple)  # (mark or "", sentence)

    @property
    def has_snapshots(self) -> bool:
        return any(row.images is not None for row in self.rows)


def decimals(score: Score) -> int:
    """Three significant digits of the value, and more only while the interval would otherwise collapse."""
    size = abs(score.value) or abs(score.high or 0.0) or 1.0
    if not math.isfinite(size):
        return 0
    digits = 2 - math.floor(math.log10(size))
    if score.low is not None and score.high is not None and 0 < score.high - score.low < math.inf:
        digits = max(digits, math.ceil(-math.log10(score.high - score.low)))
    return min(max(digits, 0), 6)


def number(value: float, digits: int) -> str:
    """A rounded number with a true minus sign, thousands set apart, no negative zero."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}".replace(",", "\u202f")
    return text.lstrip("-") if float(f"{value:.{digits}f}") == 0 else text.replace("-", "−")


def count(value: float) -> str:
    """An image count: 40 000."""
    return number(value, 0)


def shown(score: Score, factor: float = 1.0) -> tuple[str, str]:
    """(value, interval) as printed; the interval is "" when there is none."""
    low, high = (None if bound is None else bound * factor for bound in (score.low, score.high))
    scaled = Score(score.value * factor, low, high)
    digits = decimals(scaled)
    if scaled.low is None or scaled.high is None:
        return number(scaled.value, digits), ""
    return number(scaled.value, digits), f"[{number(scaled.low, digits)}, {number(scaled.high, digits)}]"


def differences(card: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Fields in which two protocol cards differ, apart from snapshot and seed; a library is `versions.torch`."""
    mine, theirs = flatten(card), flatten(other)
    fields = dict.fromkeys([*theirs, *mine])
    return [name for name in fields if name not in MAY_DIFFER and mine.get(name) != theirs.get(name)]


def common_card(records: list[StageRecord]) -> StageRecord | None:
    """The record whose card most others share (the first of equals): the protocol the table joins on."""
    keys = [repr(sorted((k, repr(v)) for k, v in r.card.items() if k not in MAY_DIFFER)) for r in records]
    if not records:
        return None
    most = Counter(keys).most_common(1)[0][0]
    return records[keys.index(most)]


def say(value: Any) -> str:
    return "not stated" if value is None else str(value)


class Footnotes:
    """Marks a, b, c … for sentences, the same sentence once."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}

    def mark(self, sentence: str) -> str:
        if sentence not in self.marks:
            n = len(self.marks)
            self.marks[sentence] = NOTE_MARKS[n % 26] * (n // 26 + 1)
        return self.marks[sentence]


def unlike(record: StageRecord, card: dict[str, Any]) -> str:
    """ "steps: 20 (others: 50)" for each differing field; "" when the cards are equal."""
    mine, theirs = flatten(record.card), flatten(card)
    fields = differences(record.card, card)
    return "; ".join(f"{name}: {say(mine.get(name))} (others: {say(theirs.get(name))})" for name in fields)


def _cells(
    record: StageRecord | None, waiting: str, metrics: tuple[Metric, ...], card: dict[str, Any], notes: Footnotes
) -> tuple[Cell, ...]:
    """A row's cells; without a finished record the first says what is being waited for."""
    if record is None or not record.done:
        said = record.state if record is not None else waiting
        return tuple(Cell(None, "–" if i else said) for i in range(len(metrics)))
    gap = unlike(record, card)
    mark = notes.mark(f"Not comparable with the other rows. {gap}.") if gap else ""
    cells = []
    for metric in metrics:
        score = record.scores.get(metric.key)
        if score is None:
            cells.append(Cell(None, "–"))
        else:
            text, interval = shown(score, metric.factor)
            cells.append(Cell(score, text, interval, mark))
    return tuple(cells)


def _present(metrics: tuple[Metric, ...], records: list[StageRecord]) -> tuple[Metric, ...]:
    """The known metrics somebody measured, then whatever else the stages wrote, under its own name."""
    known = tuple(m for m in metrics if any(m.key in r.scores for r in records))
    names = dict.fromkeys(key for r in records for key in r.scores)
    return known + tuple(Metric(key, key) for key in names if key not in {m.key for m in metrics})


def paired(a: Score, b: Score) -> Score | None:
    """b - a with its 95 % interval from the replicates of both; None when either has none or another number of them.

    Resamples are alike for equal N and seed, so what two runs share (start noise, labels) cancels. Replicates of a
    distance are biased alike, hence centred: difference + quantiles of (replicate - mean), normal below 100.
    """
    import numpy as np

    if len(a.replicates) != len(b.replicates) or len(a.replicates) < FEWEST_REPLICATES:
        return None
    value, spread_R = b.value - a.value, np.asarray(b.replicates) - np.asarray(a.replicates)
    spread_R = spread_R - spread_R.mean()
    if len(spread_R) < 100:
        half = 1.959963984540054 * float(spread_R.std(ddof=1))
        return Score(value, value - half, value + half)
    low, high = np.quantile(spread_R, [0.025, 0.975])
    return Score(value, value + float(low), value + float(high))


def distinguishable(a: Score, b: Score) -> bool:
    """Whether the interval of the paired difference excludes 0; without one, whether the two intervals are apart."""
    difference = paired(a, b)
    return not a.overlaps(b) if difference is None else not difference.overlaps(Score(0.0))


def _rank(table: Table) -> Table:
    """Marks the best final row of each metric when it can be told from the second; says so when it cannot."""
    from dataclasses import replace

    rows, rules = list(table.rows), set()
    ties: dict[str, list[str]] = {}
    for i, metric in enumerate(table.metrics):
        if not metric.better:
            continue
        sign = -1.0 if metric.better == "up" else 1.0
        ranked = [r for r in rows if r.final and r.cells[i].score is not None and not r.cells[i].note]
        ranked = [r for r in ranked if not math.isnan(r.cells[i].score.value)]  # type: ignore[union-attr]
        ranked.sort(key=lambda r: sign * r.cells[i].score.value)  # type: ignore[union-attr]
        if len(ranked) < 2:
            continue
        best, second = ranked[0], ranked[1]
        one, other = best.cells[i].score, second.cells[i].score
        assert one is not None and other is not None  # ranked by them
        rules.add(OVERLAP if paired(one, other) is None else PAIRED)
        if distinguishable(one, other):
            cells = list(best.cells)
            cells[i] = replace(cells[i], best=True)
            rows[rows.index(best)] = replace(best, cells=tuple(cells))
        else:
            ties.setdefault(f"{best.label} and {second.label}", []).append(metric.label)
    notes = list(table.notes)
    finals = [r for r in rows if r.final and any(c.score is not None and not c.note for c in r.cells)]
    if len(finals) > 1:
        rule = " or ".join(sorted(rules))
        if ties:
            pairs = "; ".join(f"{pair} in {', '.join(names)}" for pair, names in ties.items())
            notes.append(("", f"Not distinguishable by {rule}: {pairs}."))
        if any(cell.best for row in rows for cell in row.cells):
            notes.append(("", f"Bold: best of the runs' last snapshots, told from the second by {rule}."))
    return replace(table, rows=tuple(rows), notes=tuple(notes))


def _warnings(records: list[StageRecord]) -> list[tuple[str, str]]:
    texts = dict.fromkeys(warning for record in records for warning in record.warnings)
    return [("", text if text.endswith(".") else f"{text}.") for text in texts]


class Entry(NamedTuple):
    """What becomes a row: the scores, or what is waited for while there are none."""

    run: Run
    record: StageRecord | None
    label: str
    images: int | None = None
    final: bool = True  # takes part in the ranking
    waiting: str = "not scored"
    source: StageRecord | None = None  # where the row leads when there is no record


def join(title: str, known: tuple[Metric, ...], entries: list[Entry]) -> Table:
    """One table of the scores of all entries: the metrics somebody measured, the protocol most share, and footnotes for
    what differs from it.
    """
    records = [e.record for e in entries if e.record is not None and e.record.done]
    metrics = _present(known, records) or known[:1]
    reference = common_card(records)
    card, short = (reference.card, reference.card_short) if reference else ({}, "")
    notes = Footnotes()
    rows = [
        Row(
            e.run, e.record or e.source, e.label, e.images, e.final, _cells(e.record, e.waiting, metrics, card, notes)
        )
        for e in entries
    ]  # fmt: skip
    marked = tuple((mark, sentence) for sentence, mark in notes.marks.items())
    return _rank(Table(title, metrics, tuple(rows), card, short, marked + tuple(_warnings(records))))


def samples_table(runs: list[Run]) -> Table | None:
    """Scores of generated images: per run one row per snapshot, earliest first. None when no run has a samples or
    scores stage.
    """
    entries = []
    for run in runs:
        done = [s for s in run.snapshots if s.scores is not None and s.scores.done]
        for snapshot in run.snapshots:
            samples = snapshot.samples
            waiting = samples.state if samples is not None and not samples.done else "not scored"
            final = bool(done) and snapshot is done[-1]
            entries.append(Entry(run, snapshot.scores, run.label, snapshot.images, final, waiting, samples))
    return join("Generated images", SAMPLE_METRICS, entries) if entries else None


def first_stage_table(runs: list[Run]) -> Table | None:
    """Reconstruction quality and latents of each run's autoencoder; runs that share one are one row. None without
    autoencoders.
    """
    shared: dict[str, list[Run]] = {}
    stages: dict[str, StageRecord] = {}
    for run in runs:
        record = run.first_stage
        if record is not None:
            shared.setdefault(record.id, []).append(run)
            stages[record.id] = record
    entries = [
        Entry(shared[id_][0], record, ", ".join(run.label for run in shared[id_]), final=record.done)
        for id_, record in stages.items()
    ]
    return join("First stage", FIRST_STAGE_METRICS, entries) if entries else None


def escape(text: str) -> str:
    """Text inside a Markdown table cell: no character of it is syntax."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def markdown(table: Table) -> str:
    """A GitHub table with its protocol and footnotes; `value [low, high]`, the mark of a footnote in parentheses."""
    heads = ["run", *(["images"] if table.has_snapshots else []), *(metric.head for metric in table.metrics), "stage"]
    align = ["---", *(["---:"] if table.has_snapshots else []), *("---:" for _ in table.metrics), "---"]
    lines = [f"| {' | '.join(escape(head) for head in heads)} |", f"| {' | '.join(align)} |"]
    for row in table.rows:
        cells = [escape(row.label)]
        if table.has_snapshots:
            cells.append("–" if row.images is None else count(row.images))
        for cell in row.cells:
            text = escape(" ".join(part for part in (cell.text, cell.interval) if part))
            text = f"**{text}**" if cell.best else text
            cells.append(f"{text} ({cell.note})" if cell.note else text)
        cells.append(escape(row.source.place) if row.source else "–")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""] + [f"- ({mark}) {escape(text)}" if mark else f"- {escape(text)}" for mark, text in table.notes]
    if table.card_short:
        lines.append(f"- Protocol: {escape(table.card_short)}")
    return "\n".join(lines).rstrip() + "\n"


def write_csv(tables: list[Table]) -> str:
    """Every number of every table in full precision: a line per row, columns <metric>, <metric>_low, <metric>_high."""
    metrics = list(dict.fromkeys(metric.key for table in tables for metric in table.metrics))
    numbers = [name for key in metrics for name in (key, f"{key}_low", f"{key}_high")]
    out = io.StringIO()
    writer = csv.DictWriter(
        out,
        [
            "table",
            "run",
            "run_id",
            "images",
            "stage",
            "stage_id",
            "folder",
            "state",
            "protocol",
            "card_differs_in",
            *numbers,
        ],
        lineterminator="\n",
    )
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            source = row.source
            line: dict[str, Any] = {
                "table": table.title,
                "run": row.label,
                "run_id": row.run.id,
                "images": "" if row.images is None else row.images,
            }
            if source is not None:
                line |= {"stage": source.stage, "stage_id": source.id, "folder": source.place, "state": source.state}
                line |= {
                    "protocol": source.card_short,
                    "card_differs_in": unlike(source, table.card) if source.done else "",
                }
            for metric, cell in zip(table.metrics, row.cells, strict=True):
                if cell.score is not None:
                    values = (cell.score.value, cell.score.low, cell.score.high)
                    for name, value in zip(("", "_low", "_high"), values, strict=True):
                        line[metric.key + name] = "" if value is None else repr(value)
            writer.writerow(line)
    return out.getvalue()
