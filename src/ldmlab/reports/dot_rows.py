"""Scores of things without an order: a row each, the value and its interval along the horizontal axis."""

from dataclasses import dataclass
from typing import Any

from ldmlab.reports.figures import MARKERS, WIDTH, Figure, Theme

ROW, MARGIN = 26 / 72, 62 / 72  # inches


@dataclass(frozen=True)
class DotRows(Figure):
    """A series is a row of one point; `images` holds its place from the top and is not drawn."""

    @property
    def alt(self) -> str:
        return f"{self.title}. {'; '.join(f'{s.name}: {s.values[0]:.3g}' for s in self.series)}."

    def drawn(self, theme: Theme) -> Any:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        canvas = Canvas(figsize=(WIDTH, self.height), dpi=72)
        FigureCanvasAgg(canvas)
        left = min(0.04 + 0.0165 * max(len(s.name) for s in self.series), 0.5)
        axes = canvas.add_axes((left, 26 / 72 / self.height, 0.97 - left, 1 - 52 / 72 / self.height))
        axes.patch.set_alpha(0)
        for row, s in enumerate(self.series):
            colour, marker = theme.lines[s.colour % len(theme.lines)], MARKERS[s.colour % len(MARKERS)]
            if s.low:
                axes.hlines(row, s.low[0], s.high[0], color=colour, linewidth=2)
            hollow = theme.paper if s.loose and s.loose[0] else colour
            axes.plot(s.values[0], row, marker=marker, markersize=6, color=colour, markerfacecolor=hollow)
        axes.set_ylim(len(self.series) - 0.5, -0.5)
        axes.set_yticks(range(len(self.series)), [s.name for s in self.series], parse_math=False)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))
        axes.grid(axis="x", color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=theme.muted, labelsize=9.5, length=0, pad=5)
        axes.tick_params(axis="y", colors=theme.ink)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(theme.muted)
        canvas.text(
            0.012, 1 - 12 / 72 / self.height, self.y, color=theme.ink, fontsize=11, va="center", parse_math=False
        )
        return canvas


def height(rows: int) -> float:
    """Inches."""
    return MARGIN + ROW * rows
