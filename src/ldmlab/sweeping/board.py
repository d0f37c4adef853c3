"""One table of a running sweep: cell, stage, state, time left. Drawn in place on a terminal, plain lines of what changed in a file."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ldmlab.terminal import clock


class State(NamedTuple):
    """Of one cell. state: waiting, running (with a share where known), done, failed or stopped. left: seconds, None: unknown."""

    stage: str = ""
    state: str = "waiting"
    left: float | None = None


class Board:
    """Shows the states of the cells; `close` leaves the last table standing."""

    def __init__(self, cells: Sequence[str]):
        self.cells, self.states = list(cells), [State() for _ in cells]
        self.live: Any = self._live() if sys.stdout.isatty() else None

    def update(self, number: int, state: State) -> None:
        before, self.states[number] = self.states[number], state
        if self.live is not None:
            self.live.update(self._table())
        elif before[:2] != state[:2]:
            print(
                f" {' '.join(part for part in (f'cell {number}', self.cells[number], *self._texts(state)) if part)}",
                flush=True,
            )

    def progress(self, number: int, stage: str, share: str, left: float | None) -> None:
        """A cell's stage goes on; a file gets a line a stage, not a line a per cent."""
        self.update(number, State(stage, "running" if self.live is None else f"running {share}".rstrip(), left))

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    @staticmethod
    def _texts(state: State) -> tuple[str, str, str]:
        left = "" if state.left is None or not state.state.startswith("running") else f"about {clock(state.left)} left"
        return state.stage, state.state, left

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=None, pad_edge=True, header_style="bold")
        for head in ("", "cell", "stage", "state", "left"):
            grid.add_column(head)
        for number, (cell, state) in enumerate(zip(self.cells, self.states, strict=True)):
            grid.add_row(*map(Text, (str(number), cell, *self._texts(state))))
        return grid

    def _live(self) -> Any:
        from rich.live import Live

        live = Live(self._table(), refresh_per_second=2, redirect_stdout=False, redirect_stderr=False)
        live.start()
        return live
