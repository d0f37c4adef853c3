"""How far a long preparation is: a bar on a terminal, a plain line now and then in a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY = 10.0  # seconds between plain lines


@contextmanager
def progress(title: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Gives `advance(n)`: n more of `total` are done. Writes to stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(f" {title}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit} ·"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda n: bar.advance(task, n)
        return
    line = _Lines(title, total, unit)
    yield line.advance
    line.print()


class _Lines:
    def __init__(self, title: str, total: int, unit: str):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self.start = self.last = time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n
        if time.monotonic() - self.last >= _EVERY:
            self.print()

    def print(self) -> None:
        self.last = time.monotonic()
        speed = self.done / max(self.last - self.start, 1e-9)
        print(f" {self.title} {self.done}/{self.total} {self.unit} · {speed:.0f}/s", file=sys.stderr, flush=True)
