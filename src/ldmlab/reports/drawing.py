"""Draws figures with Matplotlib, byte for byte the same for the same numbers.

One panel a figure, drawn at the width of a phone (374 pt), so that its letters stay readable there and a page sets
several beside each other. Colours are those of Okabe and Ito (2008), distinguishable with every common kind of colour
blindness, each with its own marker; lines carry their names at their ends. A page shows the light or the dark drawing
according to the reader's colour scheme; files on disk are the light one.
"""

import contextlib
import functools
import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldmlab.reports import numbers
from ldmlab.reports.figures import HEIGHT, MARKERS, TRAINING, WIDTH, Figure, Series, data_csv, round_ticks, window
from ldmlab.reports.records import Estimate

PAPER_FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', 'DejaVu Sans', sans-serif"
)

CHARACTER = 0.0148  # a line's name, 9.5 pt: its width a character, of the panel's
LONGEST = 28  # characters of a name: half of the panel stays the axes'


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

COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}\b")  # of a line, a letter or a marker in an SVG


def _colours(theme: Theme) -> tuple[str, ...]:
    return (theme.ink, theme.muted, theme.grid, theme.paper, *theme.lines)


DARK = dict(zip(_colours(THEMES["light"]), _colours(THEMES["dark"]), strict=True))


def smooth(values: list[float], window: int) -> list[float]:
    """Centred mean over `window` (odd) values; towards the start narrower (losses fall steeply there), at the end of
    what is left.
    """
    half, n = window // 2, len(values)
    parts = [values[max(0, i - half) : min(i + min(i, half), n - 1) + 1] for i in range(n)]
    return [sum(part) / len(part) for part in parts]


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
    named = [(s, shortened(s.caption)) for s in figure.series]
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


def shortened(name: str) -> str:
    """A name of at most `LONGEST` characters: what is too long loses its middle, since names of one study differ at either end."""
    if len(name) <= LONGEST:
        return name
    kept = LONGEST - 1
    return f"{name[: kept - kept // 2]}…{name[-(kept // 2) :]}"


def _plain_number(value: float, _: Any = None) -> str:
    return f"{value:g}".replace("-", "−") if abs(value) < 1e4 else _thousands(value)


def _style(axes: Any, theme: Theme, grid: Literal["x", "y"]) -> None:
    """Grid lines, one axis line, no ticks."""
    axes.patch.set_alpha(0)
    axes.grid(axis=grid, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=9.5, length=0, pad=5)
    axes.tick_params(which="minor", left=False, labelleft=False, bottom=False, labelbottom=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=theme.muted, linewidth=0.8)


def _draw(figure: Figure, theme: Theme) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, figure.height), dpi=72)
    FigureCanvasAgg(canvas)
    (_draw_rows if figure.span == "rows" else _draw_lines)(canvas, figure, theme)
    head, top = figure.y + (", logarithmic" if figure.log else ""), 1 - 0.065 * HEIGHT / figure.height
    canvas.text(0.012, top, head, color=theme.ink, fontsize=11, va="center", parse_math=False)
    return canvas


def _draw_rows(canvas: Any, figure: Figure, theme: Theme) -> None:
    """Scores of things without an order: a row each, the value and its interval along the horizontal axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    left = 0.04 + 0.0165 * max(len(shortened(s.name)) for s in figure.series)
    axes = canvas.add_axes((left, 26 / 72 / figure.height, 0.97 - left, 1 - 52 / 72 / figure.height))
    for row, s in enumerate(figure.series):
        colour, marker = theme.lines[s.colour % len(theme.lines)], MARKERS[s.colour % len(MARKERS)]
        axes.hlines(row, s.low[0], s.high[0], color=colour, linewidth=2)
        hollow = theme.paper if s.loose and s.loose[0] else colour
        axes.plot(s.values[0], row, marker=marker, markersize=6, color=colour, markerfacecolor=hollow)
    axes.set_ylim(len(figure.series) - 0.5, -0.5)
    axes.set_yticks(range(len(figure.series)), [shortened(s.name) for s in figure.series], parse_math=False)
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain_number))
    _style(axes, theme, "x")
    axes.tick_params(axis="y", colors=theme.ink)


def _draw_lines(canvas: Any, figure: Figure, theme: Theme) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    longest = max((len(shortened(s.caption)) for s in figure.series), default=0)
    room = (0.03 + CHARACTER * longest) if sum(bool(s.caption) for s in figure.series) > 1 else 0.03
    foot, head_room = 0.165 * HEIGHT / figure.height, 0.145 * HEIGHT / figure.height
    axes = canvas.add_axes((0.135, foot, 0.845 - room, 1 - foot - head_room))
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
        axes.set_ylim(bottom=0 if figure.from_zero else None)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    few = 5 if room < 0.1 else 4
    axes.xaxis.set_major_locator(FixedLocator(list(figure.ticks)) if figure.ticks else MaxNLocator(few))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_xlabel(figure.x, color=theme.muted, fontsize=10)
    _style(axes, theme, "y")
    _labels(axes, figure, theme)


class Spot(NamedTuple):
    """A measured point of a drawing. x, y: CSS pixels from its top left corner. text: what the point says. source: the stage folder
    it comes from, "" for a mean of several."""

    x: float
    y: float
    text: str
    source: str


def _said(figure: Figure, s: Series, i: int) -> str:
    """ "kl_f4, after 2 000 images, FID 12.3 [11.9, 12.8]" """
    where = f"after {numbers.count(s.images[i])} images" if figure.x == TRAINING else f"{figure.x} {s.images[i]:g}"
    low, high = (s.low[i], s.high[i]) if s.low else (None, None)
    said = " ".join(part for part in numbers.shown(Estimate(s.values[i], low, high)) if part)
    parts = [" ".join(part for part in (s.name, s.split) if part), "" if figure.span == "rows" else where]
    other = "another protocol" if s.loose and s.loose[i] else ""
    return ", ".join(part for part in (*parts, f"{figure.y.rstrip(' ↑↓')} {said}", other) if part)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's own defaults, whatever a person's file says, with text that stays text; and all as it was afterwards."""
    import matplotlib

    own: Any = {
        "svg.hashsalt": "ldmlab",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans"],
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context():
        defaults: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
        matplotlib.rcParams.update(defaults)
        matplotlib.rcParams.update(own)
        yield


class DrawnFigure:
    """A figure, drawn once for all that shows it; each form is made when it is first asked for."""

    def __init__(self, figure: Figure) -> None:
        self._figure = figure

    @functools.cached_property
    def _canvas(self) -> Any:
        with _settings():
            return _draw(self._figure, THEMES["light"])

    @functools.cached_property
    def light(self) -> str:
        """As SVG with a transparent ground; its text is text, in the reader's own fonts."""
        return _svg(self._canvas, self._figure.title)

    @property
    def dark(self) -> str:
        """The same in the colours of the dark theme."""
        return COLOUR.sub(lambda found: DARK.get(found[0], found[0]), self.light)

    @functools.cached_property
    def png(self) -> bytes:
        """As PNG on white, 187 dots an inch (972 pixels wide)."""
        out = io.BytesIO()
        with _settings():
            self._canvas.savefig(out, format="png", dpi=187, facecolor="white", metadata={"Software": None})
        return out.getvalue()

    @functools.cached_property
    def spots(self) -> list[Spot]:
        """Every point of the figure that is drawn with a marker, in the order of its series."""
        figure, (axes,) = self._figure, self._canvas.axes
        found = []
        for s, moved in zip(figure.series, _apart(figure), strict=True):
            for i, (x, value) in enumerate(zip(moved.images, s.values, strict=True)):
                if s.style == "points" and math.isfinite(value):
                    place = (value, x) if figure.span == "rows" else (x, value)
                    right, up = axes.transData.transform(place)
                    source = s.sources[i] if len(s.sources) == len(s.values) else "".join(s.sources[:1])
                    found.append(Spot(round(right, 1), round(figure.height * 72 - up, 1), _said(figure, s, i), source))
        return found


def _svg(canvas: Any, title: str) -> str:
    out = io.BytesIO()
    with _settings():
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    return out.getvalue().decode().replace("'DejaVu Sans'", PAPER_FONTS)


def files(figure: Figure, drawn: DrawnFigure, folder: str = "figures") -> dict[str, bytes]:
    """{relative path: contents} of the three files a figure leaves on disk."""
    base = Path(folder) / figure.name
    return {
        f"{base}.svg": drawn.light.encode(), f"{base}.png": drawn.png, f"{base}.csv": data_csv(figure).encode()
    }  # fmt: skip
