"""What a person sees while a command works: one progress display, one way to print a table.

On a terminal rich draws them; in a file there are plain lines. rich is imported when it is needed (40 ms).
"""

import atexit
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

WIDE = 100_000  # columns of a table that is made as text: nothing is wrapped
TAIL = 4096  # bytes at a log's end
LINE = re.compile(r"^ (?P<name>\S(?:.*\S)?) +(?P<share>\d+%)  (?P<text>[\d ]+/[\d ]+ \w+.*)$", re.M)  # of Progress
LEFT = re.compile(r"([\d:]+) left$")


class Progress:
    """A bar on a terminal, a plain line every `every` seconds in a file: name, share, count, speed, values, time left."""

    def __init__(
        self, name: str, total: int, unit: str = "img", start: int = 0, every: float = 10.0, show: bool = True
    ):
        self.name, self.total, self.unit, self.every, self.show = name, total, unit, every, show
        self.began, self.start, self.said = time.monotonic(), start, -1e9
        self.closed = False
        self.bar: Any = _bar(name, total) if show and sys.stderr.isatty() else None
        if self.bar is not None:
            atexit.register(self.close)  # a bar that stays open hides the cursor

    def update(self, done: int, values: dict[str, float] | None = None) -> None:
        """`done` of the total, with numbers to show beside it."""
        now, last = time.monotonic(), done >= self.total
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, text=self._text(done, now, values or {}))
            if last:
                self.close()
        elif self.show and not self.closed and (now - self.said >= self.every or last):
            self.said = now
            share = done / max(self.total, 1)
            print(f" {self.name:<12}{share:5.0%}  {self._text(done, now, values or {})}", file=sys.stderr, flush=True)

    def _text(self, done: int, now: float, values: dict[str, float]) -> str:
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left = (self.total - done) / rate if rate > 0 else float("inf")
        parts = [f"{number(done)}/{number(self.total)} {self.unit}"]
        if rate > 0:
            parts.append(f"{number(round(rate)) if rate >= 10 else f'{rate:.2g}'} {self.unit}/s")
        parts += [f"{k} {v:.4g}" for k, v in values.items()]
        if left < float("inf") and done < self.total:
            parts.append(f"{clock(left)} left")
        elif done >= self.total:
            parts.append(clock(now - self.began))
        return " · ".join(parts)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.show:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self.bar is not None:
            atexit.unregister(self.close)
            self.bar.stop()
            self.bar, self.closed = None, True


class Seen(NamedTuple):
    """What a plain line of progress says. share: "35%"; left: seconds, None where it does not say."""

    name: str
    share: str
    left: float | None


def read_progress(text: str) -> Seen | None:
    """The last line of progress in a log that `Progress` has written to; None without one."""
    every = list(LINE.finditer(text))
    if not every:
        return None
    found = every[-1]
    left = LEFT.search(found["text"])
    parts = [int(part) for part in left[1].split(":")] if left else []
    return Seen(found["name"], found["share"], sum(n * 60**i for i, n in enumerate(reversed(parts))) if left else None)


def tail(log: Path) -> str:
    """The end of a log, which holds its last line of progress; "" without one."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return file.read().decode(errors="replace")


def _bar(name: str, total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(f" {name:<11}", markup=False),
        BarColumn(20),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    bar = Bar(
        *columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False, refresh_per_second=5
    )
    bar.add_task(name, total=total, text="")
    bar.start()
    return bar


@contextmanager
def progress(title: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Gives `advance(n)`: n more of `total` are done. For work that no stage owns, such as reading a folder."""
    bar, done = Progress(title, total, unit), 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        bar.update(done)

    try:
        yield advance
    finally:
        bar.close()


def table(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: columns aligned with two spaces between them, one space before the first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in lines[0]:
        grid.add_column(no_wrap=True)
    for line in lines:
        grid.add_row(*map(Text, line))
    console = Console(width=WIDE, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(f" {line.rstrip()}" for line in captured.get().splitlines())


def number(value: int) -> str:
    """12 345 678 with narrow groups, as the tables print it."""
    return f"{value:,}".replace(",", " ")


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour up."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
