"""How a measurement is reported: an aligned table on the terminal, and JSON lines with machine, time and command."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldmlab import terminal
from ldmlab.pipeline.timing import Ratio
from ldmlab.store.card import code, machine, stamp


class Column(NamedTuple):
    """One column of the table; the JSON line has every value of the row, shown or not."""

    key: str
    heading: str
    show: Callable[[Any], str] = str


@dataclass
class Report:
    """Rows of one measurement. A value that was not measured is None and shown as –."""

    bench: str
    columns: list[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a reader must know to use the numbers

    def text(self) -> str:
        """The aligned table with its notes."""
        lines = [[column.heading for column in self.columns]]
        for row in self.rows:
            cells = [row.get(column.key) for column in self.columns]
            lines.append(
                ["–" if cell is None else column.show(cell) for cell, column in zip(cells, self.columns, strict=True)]
            )
        return "\n".join([terminal.table(lines), *(f" {note}" for note in self.notes)])


def announce(text: str) -> None:
    """What is being measured now; on stderr, so that the table can be piped."""
    print(f"measuring {text} …", file=sys.stderr, flush=True)


def append(report: Report, path: Path, command: str, device: torch.device) -> None:
    """One JSON line per row at the end of `path`: the row, and date, command, machine, code, torch, threads, notes."""
    about = {
        "bench": report.bench, "date": stamp(time.time()), "command": command, "machine": machine(), "code": code(),
        "torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": device.type, "notes": report.notes,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in report.rows:
            file.write(json.dumps({**about, **_plain(row)}) + "\n")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value._asdict() if isinstance(value, Ratio) else value for key, value in row.items()}


# ---- how values are shown ----


def digits(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def milliseconds(seconds: float) -> str:
    return f"{digits(1e3 * seconds)} ms"


def giga(value: float) -> str:
    return digits(value / 1e9)


def percent(value: float) -> str:
    return f"{value:.0%}"


def with_quartiles(ratio: Ratio) -> str:
    """Median and, in brackets, the middle half of the rounds."""
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def times(value: float) -> str:
    return f"{value:.3f} x"
