"""Figures as plain numbers: a score over training or along another axis, a logged quantity, scores without an order.

`drawing` draws them; `data_csv` writes the drawn numbers, unsmoothed. All pipelines make the lines of a score with
`score_line` and its panel with `score_panel`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ldmlab.metrics.protocol import leaf_differences
from ldmlab.reports.numbers import MetricDeclaration, common_card, csv_text, metrics_of, plain
from ldmlab.reports.records import Run, StageRecord

WIDTH, HEIGHT = 374 / 72, 224 / 72  # inches
ROW, ROW_MARGIN = 26 / 72, 62 / 72  # inches of a figure without an order
TRAINING = "training images"
MARKERS = "osD^vPX"
JOINED = " + "  # between the sources of a point that is a mean
FLOOR = (
    "Dashed, linear: the best linear denoiser of these latents, without their condition. Above it training is early or broken, "
    "below it the network has learnt more than two moments."
)
FLOOR_COLOUR = 6  # grey


@dataclass(frozen=True)
class Series:
    """One line. `images` is its x: images seen, unless the figure says otherwise. `low` and `high` are as long as
    `values`, or empty; `loose[i]` sets a point apart (another protocol), unjoined and hollow.
    """

    name: str
    images: list[float]
    values: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    loose: list[bool] = field(default_factory=list)
    split: str = ""
    dashed: bool = False
    colour: int = 0
    style: Literal["noisy", "points", "line"] = "noisy"
    sources: tuple[str, ...] = ()  # stage folder of each point (of several, JOINED), or one for all

    @property
    def caption(self) -> str:
        """What stands at the line's end."""
        name = self.name if len(self.name) <= 20 else f"{self.name[:10]}…{self.name[-9:]}"
        return " ".join(part for part in (name, self.split) if part)


@dataclass(frozen=True)
class Figure:
    """A panel: y over x. span: whether x begins at 0, lies anywhere, is logarithmic, or has no order (`rows`: each series
    is one row of one point, `images` its place from the top).
    """

    name: str  # file name without ending
    title: str
    y: str
    series: tuple[Series, ...]
    note: str = ""
    log: bool = False
    from_zero: bool = False
    x: str = TRAINING
    span: Literal["from zero", "free", "log", "rows"] = "from zero"
    ticks: tuple[float, ...] = ()
    height: float = HEIGHT  # inches
    bars: bool = False  # intervals as bars, the lines a little apart, where bands of many lines would hide each other

    @property
    def size(self) -> tuple[int, int]:
        """CSS pixels."""
        return round(WIDTH * 72), round(self.height * 72)

    @property
    def caption(self) -> str:
        title = f"{self.title[0].upper()}{self.title[1:]}. " if self.title != self.y else ""
        return f"{title}{self.note}"

    @property
    def alt(self) -> str:
        if self.span == "rows":
            return f"{self.title}. {'; '.join(f'{s.name}: {plain(s.values[0])}' for s in self.series)}."
        ends = (f"{s.caption or self.y}: {plain(s.values[0])} to {plain(s.values[-1])}" for s in self.series)
        return f"{self.title} over {self.x}. {'; '.join(ends)}."


def slug(text: str) -> str:
    """A file name: lower case letters, digits, dots, dashes and underscores."""
    kept = "".join(ch if ch.isascii() and (ch.isalnum() or ch in "._") else "-" for ch in text.lower())
    return kept.strip("-.") or "figure"


def window(n: int) -> int:
    """Odd width of the mean that is drawn over `n` logged values: about a fifteenth of them, 1 (none) below 30."""
    return 1 if n < 30 else n // 15 | 1


def round_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """1, 2, 5, 10, … between two positive numbers, for a logarithmic axis; powers of ten alone when those are many, and more
    numbers of one digit where fewer than three would be left.
    """
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)

    def of(steps: Sequence[int]) -> tuple[float, ...]:
        return tuple(x for d in decades for m in steps if low * 0.98 <= (x := float(f"{m}e{d}")) <= high * 1.02)

    def fewest(choices: Sequence[Sequence[int]]) -> tuple[float, ...]:
        return next((ticks for steps in choices[:-1] if len(ticks := of(steps)) <= most), of(choices[-1]))

    found = fewest(((1, 2, 5), (1, 3), (1,)))
    return (found if len(found) > 2 else fewest((range(1, 10), (1, 2, 3, 4, 6, 8)))) or (low, high)


def score_line(
    name: str, points: Sequence[tuple[float, StageRecord]], metric: MetricDeclaration, card: dict[str, Any], **look: Any
) -> Series:
    """A metric of some stages over x, with intervals. card: the protocol most share; points of another stay loose."""
    scores = [record.scores[metric.key].times(metric.factor) for _, record in points]
    return Series(
        name,
        [x for x, _ in points],
        [score.value for score in scores],
        [score.bounds[0] for score in scores],
        [score.bounds[1] for score in scores],
        [bool(leaf_differences(record.protocol(metric.key), card)) for _, record in points],
        style="points",
        sources=tuple(record.place for _, record in points),
        **look,
    )  # fmt: skip


def score_panel(
    metric: MetricDeclaration, series: list[Series], over: str, title: str, note: str, steep: float, **look: Any
) -> Figure:
    """The lines of one metric. steep: the ratio of values beyond which a metric that falls is drawn logarithmically."""
    values = [v for s in series for v in s.values if math.isfinite(v)]
    falls = metric.better == "lower" and len(values) > 1 and min(values) > 0
    log = falls and look.get("span") != "rows" and max(values) / min(values) > steep
    if any(any(s.loose) for s in series):
        joined = (
            "Hollow: another protocol."
            if look.get("span") == "rows"
            else "Hollow points have another protocol and are not joined."
        )
        note = f"{note} {joined}"
    zero = look.pop("from_zero", False) and not log and metric.better == "lower"
    return Figure(f"{slug(metric.key)}{over}", title, metric.head, tuple(series), note, log, zero, **look)


def over_training(runs: list[Run], metric: MetricDeclaration) -> Figure | None:
    """A score of generated images over training, with its intervals; points of unequal protocol stay loose."""
    card = common_card([s.scores for run in runs for s in run.snapshots if s.scores is not None], metric.key)
    series = []
    for i, run in enumerate(runs):
        scored = [(s.images, s.scores) for s in run.snapshots if s.images is not None and s.scores is not None]
        points = [(float(images), record) for images, record in scored if metric.key in record.scores]
        if points:
            series.append(score_line(run.label if len(runs) > 1 else "", points, metric, card, colour=i))
    title, note = f"{metric.label} of generated images", "Bands: 95 % interval of each score."
    return score_panel(metric, series, "-over-training", title, note, 30, from_zero=True) if series else None


def score_figures(runs: list[Run]) -> list[Figure]:
    """The first metric always; the others once there are two snapshots to join."""
    records = [s.scores for run in runs for s in run.snapshots if s.scores is not None and s.scores.done]
    found = [figure for metric in metrics_of(records) if (figure := over_training(runs, metric)) is not None]
    return [f for n, f in enumerate(found) if n == 0 or any(len(s.values) > 1 for s in f.series)]


def logged(
    runs: list[Run], stage: str, quantity: str, title: str = "", only: tuple[str, ...] = ("train", "val")
) -> Figure | None:
    """A quantity of metrics.jsonl, train and val, of every run that logged it; a shared stage is drawn once."""
    records: dict[str, tuple[int, Run, StageRecord]] = {}
    for i, run in enumerate(runs):
        record = run.stage(stage)
        if record is not None:
            records.setdefault(record.id, (i, run, record))
    series = []
    for i, run, record in records.values():
        splits = list(dict.fromkeys(row.get("split", "train") for row in record.rows if quantity in row))
        both = {"train", "val"} <= {*splits} & {*only}
        for split in (split for split in splits if split in only):
            curve = record.curve(quantity, split)
            if curve.values:
                name, style = run.label if len(runs) > 1 else "", "noisy" if split == "train" else "points"
                look: dict[str, Any] = {"dashed": split == "val" and both, "colour": i, "style": style}
                series.append(Series(name, curve.images, curve.values, split=split, sources=(record.place,), **look))
    if not series:
        return None
    lines = [line for i, _, record in records.values() for line in floor_line(quantity, record, i, len(runs) > 1)]
    floors = list({tuple(line.values): line for line in reversed(lines)}.values())[::-1]  # seeds of one latent share it
    widths = sorted({window(len(s.values)) for s in series if s.style == "noisy"} - {1})
    note = f"Thin: every logged value. Thick: centred mean of {' or '.join(map(str, widths))}." if widths else ""
    note = "On validation images." if {s.split for s in series} == {"val"} else note
    note = " ".join(part for part in (note, FLOOR if floors else "") if part)
    head = title or f"{quantity}, {stage}"
    return Figure(slug(f"{stage}-{quantity}"), head, head, (*series, *floors), note, _spans(series))


def floor_line(quantity: str, record: StageRecord, colour: int, several: bool) -> list[Series]:
    """A level dashed line at the floor of this quantity, over the images of its log; none without one."""
    floor, over = record.floor.get(quantity), [float(row["images"]) for row in record.rows if quantity in row]
    if floor is None or not over:
        return []
    look: dict[str, Any] = {"dashed": True, "style": "line", "colour": colour if several else FLOOR_COLOUR}
    return [Series("linear", [min(over), max(over)], [floor, floor], sources=(record.place,), **look)]


def _spans(series: list[Series]) -> bool:
    """Whether all values are positive and span more than a factor 30: then the axis is logarithmic."""
    values = sorted(v for s in series for v in s.values)
    return bool(values) and values[0] > 0 and math.isfinite(values[-1]) and values[-1] / values[0] > 30


def data_csv(figure: Figure) -> str:
    """The drawn numbers, unsmoothed: one line a point, in full precision."""
    over = "images" if figure.x == TRAINING else slug(figure.x)
    records = []
    for s in figure.series:
        sources = s.sources if len(s.sources) == len(s.values) else (s.sources or ("",)) * len(s.values)
        for i, (x, value) in enumerate(zip(s.images, s.values, strict=True)):
            place = int(x) if figure.x == TRAINING else f"{x:.12g}"
            low, high = (s.low[i], s.high[i]) if s.low else (None, None)
            loose = ("yes" if s.loose[i] else "no") if s.loose else ""
            records.append(
                {"run": s.name, "split": s.split, over: place, "value": value, "low": low, "high": high,
                 "other_protocol": loose, "source": sources[i]}
            )  # fmt: skip
    return csv_text(records)
