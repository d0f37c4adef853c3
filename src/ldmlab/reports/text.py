"""Numbers and tables as the pages of studies say them."""

from typing import Any

from ldmlab.reports import tables
from ldmlab.reports.collect import Run, Score


def plain(value: float | None, digits: int = 3) -> str:
    """Three significant digits; a dash for None."""
    return "–" if value is None else tables.shown(Score(float(f"{value:.{digits}g}")))[0]


def millions(count: int) -> str:
    if count == 0:
        return "0"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e3 else str(count)


def markdown_table(heads: list[str], rows: list[list[str]], left: int = 1, ready: bool = False) -> list[str]:
    """A Markdown table; the first `left` columns are words. ready: the rows are Markdown already."""
    align = ["---" if i < left else "---:" for i in range(len(heads))]
    said = rows if ready else [[tables.escape(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in ([tables.escape(head) for head in heads], align, *said)]


def machine_text(runs: list[Run]) -> str:
    """Where the runs were made, each machine once."""
    told: dict[str, Any] = {}
    for run in runs:
        told[", ".join(f"{name} {value}" for name, value in run.machine.items() if value is not None)] = None
    return f"Machine: {'; '.join(text for text in told if text) or 'not recorded'}."
