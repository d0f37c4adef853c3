"""Curves over training or over another quantity: drawn from rows of the store, written as SVG, PNG and CSV, byte for
byte the same for the same rows.

One panel a figure, drawn at the width of a phone (374 pt), so that its letters stay readable there and a page sets
several beside each other. Colours are those of Okabe and Ito (2008), told apart with every common kind of colour
blindness, each with its own marker; lines carry their names at their ends. A page shows the light or the dark drawing
according to the reader's colour scheme; files on disk are the light one.
"""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldmlab.reports.collect import Curve, Run, Score, StageRecord
from ldmlab.reports.tables import SAMPLE_METRICS, Metric, common_card, differences

WIDTH, HEIGHT = 374 / 72, 224 / 72  # inches
TRAINING = "training images"
MARKERS = "osD^vPX"
PAPER_FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', 'DejaVu Sans', sans-serif"
)


class Theme(NamedTuple):
    ink: str
    muted: str
    grid: str
    paper: str
    lines: tuple[str, ...]


THEMES = {
    "light": Theme(
        "#1b1d21", "#5c626b", "#e4e6ea", "#ffffff",
        ("#0072b2", "#d55e00", "#00805c", "#b0568c", "#8a6d00", "#2b95cc", "#4d4d4d"),
    ),
    "dark": Theme(
        "#e8eaed", "#a2a9b4", "#2c3038", "#14161a",
        ("#56b4e9", "#f08a3c", "#2fbf93", "#df93c0", "#e6c84a", "#9ad1f5", "#b8bcc4"),
    ),
}  # fmt: skip


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
    sources: tuple[str, ...] = ()  # stage folder of each point, or one for all

    @property
    def caption(self) -> str:
        """What stands at the line's end."""
        return " ".join(part for part in (_short(self.name), self.split) if part)


@dataclass(frozen=True)
class Figure:
    """A panel: y over x. span: whether x begins at 0, lies anywhere, or is logarithmic."""

    name: str  # file name without ending
    title: str
    y: str
    series: tuple[Series, ...]
    note: str = ""
    log: bool = False
    from_zero: bool = False
    x: str = TRAINING
    span: Literal["from zero", "free", "log"] = "from zero"
    ticks: tuple[float, ...] = ()
    height: float = HEIGHT  # inches
    bars: bool = False  # intervals as bars, the lines a little apart, where bands of many lines would hide each other

    @property
    def size(self) -> tuple[int, int]:
        """CSS pixels."""
        return round(WIDTH * 72), round(self.height * 72)

    @property
    def alt(self) -> str:
        lines = "; ".join(
            f"{s.caption or self.y}: {_plain(s.values[0])} to {_plain(s.values[-1])}" for s in self.series
        )
        return f"{self.title} over {self.x}. {lines}."

    def drawn(self, theme: Theme) -> Any:
        """A canvas of Matplotlib. Other kinds of panel draw themselves in another way."""
        return _draw(self, theme)


def _plain(value: float) -> str:
    return f"{value:.3g}"


def slug(text: str) -> str:
    """A file name: lower case letters, digits, dots, dashes and underscores."""
    return (
        "".join(ch if ch.isascii() and (ch.isalnum() or ch in "._") else "-" for ch in text.lower()).strip("-.")
        or "figure"
    )


def smooth(values: list[float], window: int) -> list[float]:
    """Centred mean over `window` (odd) values; towards the start narrower (losses fall steeply there), at the end of
    what is left.
    """
    half, n = window // 2, len(values)
    parts = [values[max(0, i - half) : min(i + min(i, half), n - 1) + 1] for i in range(n)]
    return [sum(part) / len(part) for part in parts]


def window(n: int) -> int:
    """Odd width of the mean that is drawn over `n` logged values: about a fifteenth of them, 1 (none) below 30."""
    return 1 if n < 30 else n // 15 | 1


def over_training(runs: list[Run], metric: Metric) -> Figure | None:
    """A score of generated images over training, with its intervals; points of unequal protocol stay loose."""
    k = metric.factor
    scored = [s.scores for run in runs for s in run.snapshots if s.scores is not None and s.scores.done]
    reference = common_card(scored)
    series = []
    for i, run in enumerate(runs):
        points: list[tuple[float, Score, StageRecord]] = []
        for snapshot in run.snapshots:
            record = snapshot.scores
            if snapshot.images is not None and record is not None and metric.key in record.scores:
                points.append((float(snapshot.images), record.scores[metric.key], record))
        if points:
            series.append(
                Series(
                    run.label if len(runs) > 1 else "",
                    [images for images, _, _ in points],
                    [score.value * k for _, score, _ in points],
                    [(score.value if score.low is None else score.low) * k for _, score, _ in points],
                    [(score.value if score.high is None else score.high) * k for _, score, _ in points],
                    [bool(differences(record.card, reference.card if reference else {})) for _, _, record in points],
                    colour=i,
                    style="points",
                    sources=tuple(record.place for _, _, record in points),
                )
            )
    if not series:
        return None
    values = [v for s in series for v in s.values if v > 0 and math.isfinite(v)]
    log = metric.better == "down" and len(values) > 1 and max(values) / min(values) > 30
    note = "Bands: interval of each score."
    if any(any(s.loose) for s in series):
        note += " Hollow points have another protocol and are not joined."
    return Figure(
        f"{slug(metric.key)}-over-training",
        f"{metric.label} of generated images",
        metric.head,
        tuple(series),
        note,
        log,
        from_zero=not log and metric.better == "down",
    )


def logged(
    runs: list[Run], stage: str, quantity: str, title: str = "", only: tuple[str, ...] = ("train", "val")
) -> Figure | None:
    """A quantity of metrics.jsonl, train and val, of every run that logged it; a shared stage is drawn once."""
    series, seen = [], set()
    for i, run in enumerate(runs):
        record = run.stage(stage)
        if record is None or record.id in seen:
            continue
        seen.add(record.id)
        splits = list(dict.fromkeys(row.get("split", "train") for row in record.rows if quantity in row))
        for split in (split for split in splits if split in only):
            curve: Curve = record.curve(quantity, split)
            if curve.values:
                series.append(
                    Series(
                        run.label if len(runs) > 1 else "",
                        curve.images,
                        curve.values,
                        split=split,
                        dashed=split == "val" and {"train", "val"} <= {*splits} & {*only},
                        colour=i,
                        style="noisy" if split == "train" else "points",
                        sources=(record.place,),
                    )
                )
    if not series:
        return None
    widths = {window(len(s.values)) for s in series if s.style == "noisy"} - {1}
    note = (
        f"Thin: every logged value. Thick: centred mean of {' or '.join(map(str, sorted(widths)))}." if widths else ""
    )
    if {s.split for s in series} == {"val"}:
        note = "On validation images."
    head = title or f"{quantity}, {stage}"
    return Figure(slug(f"{stage}-{quantity}"), head, head, tuple(series), note, _spans(series))


def _spans(series: list[Series]) -> bool:
    """Logarithmic when all values are positive and the middle half of training already spans more than a factor 30."""
    values = sorted(v for s in series for v in s.values)
    if not values or values[0] <= 0 or not math.isfinite(values[-1]):
        return False
    return values[-1] / values[0] > 30


def score_figures(runs: list[Run]) -> list[Figure]:
    """FID always; the other scores once there are two snapshots to join."""
    found = [over_training(runs, metric) for metric in SAMPLE_METRICS]
    return [
        f for f in found if f is not None and (f.name.startswith("fid") or any(len(s.values) > 1 for s in f.series))
    ]


def data_csv(figure: Figure) -> str:
    """The drawn numbers, unsmoothed: one line a point, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    over = "images" if figure.x == TRAINING else slug(figure.x)
    writer.writerow(["run", "split", over, "value", "low", "high", "other_protocol", "source"])
    for s in figure.series:
        sources = s.sources if len(s.sources) == len(s.values) else (s.sources or ("",)) * len(s.values)
        for i, (images, value) in enumerate(zip(s.images, s.values, strict=True)):
            low, high = (repr(s.low[i]), repr(s.high[i])) if s.low else ("", "")
            loose = ("yes" if s.loose[i] else "no") if s.loose else ""
            x = int(images) if figure.x == TRAINING else f"{images:.12g}"
            writer.writerow([s.name, s.split, x, repr(value), low, high, loose, sources[i]])
    return out.getvalue()


def round_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """1, 2, 5, 10, … between two positive numbers, for a logarithmic axis; powers of ten alone when those are many."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = tuple(m * 10.0**d for d in decades for m in steps if low * 0.98 <= m * 10.0**d <= high * 1.02)
        if 0 < len(found) <= most:
            return found
    return found or (low, high)


def _thousands(value: float, _: Any = None) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}".replace("-", "−")


def _spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, at least `gap` apart and inside [low, high] while there is room; order is kept."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap) if placed else max(wanted[i], low))
    top = high
    for j in range(len(placed) - 1, -1, -1):
        placed[j] = max(min(placed[j], top), low)
        top = placed[j] - gap
    back = dict(zip(order, placed, strict=True))
    return [back[i] for i in range(len(wanted))]


def _short(text: str, n: int = 20) -> str:
    return text if len(text) <= n else f"{text[: n // 2]}…{text[-(n - n // 2 - 1) :]}"


def _apart(figure: Figure) -> list[Series]:
    """The series as they are drawn: with bars each a little beside the others, so that no bar hides another."""
    if not figure.bars:
        return list(figure.series)
    xs = [x for s in figure.series for x in s.images]
    log = figure.span == "log"
    span = math.log(max(xs) / min(xs)) if log else max(xs) - min(xs)
    found = []
    for n, s in enumerate(figure.series):
        move = span * 0.01 * (n - (len(figure.series) - 1) / 2)
        found.append(replace(s, images=[x * math.exp(move) if log else x + move for x in s.images]))
    return found


def _line(axes: Any, s: Series, theme: Theme, bars: bool = False) -> None:
    colour, marker = theme.lines[s.colour % len(theme.lines)], MARKERS[s.colour % len(MARKERS)]
    if s.style == "noisy":
        width = window(len(s.values))
        if width > 1:
            axes.plot(s.images, s.values, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(s.images, smooth(s.values, width), color=colour, linewidth=1.7)
        return
    if s.style == "line":
        alone = marker if len(s.values) == 1 else ""
        axes.plot(s.images, s.values, color=colour, linewidth=1.5, linestyle="--" if s.dashed else "-", marker=alone)
        return
    loose = s.loose or [False] * len(s.values)
    joined = [i for i, apart in enumerate(loose) if not apart]
    x, y = [s.images[i] for i in joined], [s.values[i] for i in joined]
    weight = 1.2 if bars else 1.7
    axes.plot(x, y, color=colour, linewidth=weight, marker=marker, markersize=4.5, linestyle="--" if s.dashed else "-")
    if s.low:
        if not bars:
            axes.fill_between(
                x, [s.low[i] for i in joined], [s.high[i] for i in joined], color=colour, alpha=0.18, linewidth=0
            )
        for i, apart in enumerate(loose):
            if bars:
                axes.vlines(s.images[i], s.low[i], s.high[i], color=colour, linewidth=0.9, alpha=0.55)
            elif apart or len(joined) < 2:  # no band to stand in: draw the interval as a bar
                axes.vlines(s.images[i], s.low[i], s.high[i], color=colour, linewidth=1.2)
            if apart:
                axes.plot(
                    s.images[i], s.values[i], marker=marker, markersize=5, color=colour, markerfacecolor=theme.paper
                )


def _labels(axes: Any, figure: Figure, theme: Theme) -> None:
    """Names at the line ends, moved apart where they would touch, in the colour of their line."""
    named = [(s, s.caption) for s in figure.series]
    if sum(bool(text) for _, text in named) < 2:  # one line needs no name: the title says what it is
        return
    height = axes.get_window_extent().height
    ends = [axes.transData.transform((s.images[-1], s.values[-1]))[1] - axes.get_window_extent().y0 for s, _ in named]
    placed = _spread(ends, gap=min(13.0, height / max(len(ends), 1)), low=4, high=height - 4)
    for (s, text), y in zip(named, placed, strict=True):
        axes.text(
            1.02, y / height, text, transform=axes.transAxes, va="center", ha="left", fontsize=9.5,
            color=theme.lines[s.colour % len(theme.lines)], parse_math=False,
        )  # fmt: skip


def _draw(figure: Figure, theme: Theme) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    canvas = Canvas(figsize=(WIDTH, figure.height), dpi=72)
    FigureCanvasAgg(canvas)
    longest = max((len(s.caption) for s in figure.series), default=0)
    room = (0.03 + 0.0148 * longest) if sum(bool(s.caption) for s in figure.series) > 1 else 0.03
    foot, head_room = 0.165 * HEIGHT / figure.height, 0.145 * HEIGHT / figure.height
    axes = canvas.add_axes((0.135, foot, 0.845 - room, 1 - foot - head_room))
    axes.patch.set_alpha(0)
    for s in _apart(figure):
        _line(axes, s, theme, figure.bars)
    if figure.span == "from zero":
        axes.set_xlim(left=0)
    elif figure.span == "log":
        axes.set_xscale("log")
    if figure.log:
        axes.set_yscale("log")
        values = [v for s in figure.series for v in s.values if 0 < v < math.inf]
        axes.yaxis.set_major_locator(FixedLocator(list(round_ticks(min(values), max(values)))))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if figure.from_zero:
            axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−") if abs(v) < 1e4 else _thousands(v))
    )
    if figure.ticks:
        axes.xaxis.set_major_locator(FixedLocator(list(figure.ticks)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5 if room < 0.1 else 4))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_xlabel(figure.x, color=theme.muted, fontsize=10)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=9.5, length=0, pad=5)
    axes.tick_params(which="minor", left=False, labelleft=False, bottom=False, labelbottom=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)
    axes.spines["bottom"].set_linewidth(0.8)
    head = figure.y + (", logarithmic" if figure.log else "")
    canvas.text(
        0.012, 1 - 0.065 * HEIGHT / figure.height, head, color=theme.ink, fontsize=11, va="center", parse_math=False
    )
    _labels(axes, figure, theme)
    return canvas


def _rendered(figure: Figure, theme: Theme, save: Callable[[Any, io.BytesIO], None]) -> bytes:
    import matplotlib

    settings: Any = {
        "svg.hashsalt": "ldmlab",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans"],
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context():
        defaults: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
        matplotlib.rcParams.update(defaults)
        matplotlib.rcParams.update(settings)
        out = io.BytesIO()
        save(figure.drawn(theme), out)
    return out.getvalue()


def svg(figure: Figure, scheme: Literal["light", "dark"] = "light") -> str:
    """The figure as SVG with a transparent ground; its text is text, in the reader's own fonts."""
    metadata = {"Date": None, "Creator": None, "Title": figure.title}
    raw = _rendered(
        figure,
        THEMES[scheme],
        lambda canvas, out: canvas.savefig(out, format="svg", transparent=True, metadata=metadata),
    )
    return raw.decode().replace("'DejaVu Sans'", PAPER_FONTS)


def png(figure: Figure) -> bytes:
    """The figure as PNG on white, 187 dots an inch (972 pixels wide)."""
    options: dict[str, Any] = {"format": "png", "dpi": 187, "facecolor": "white", "metadata": {"Software": None}}
    return _rendered(figure, THEMES["light"], lambda canvas, out: canvas.savefig(out, **options))


def files(figure: Figure, folder: str = "figures") -> dict[str, bytes]:
    """{relative path: contents} of the three files a figure leaves on disk."""
    base = Path(folder) / figure.name
    return {
        f"{base}.svg": svg(figure).encode(),
        f"{base}.png": png(figure),
        f"{base}.csv": data_csv(figure).encode(),
    }
