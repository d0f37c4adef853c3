"""One process of a command that runs as several: which it is, how it waits for the others, how it shows progress."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """One process among those of a command: its number, their count, how they wait for each other, how progress is shown."""

    rank: int = 0
    count: int = 1
    barrier: Callable[[], None] = lambda: None
    progress: Callable[[str, int], Callable[[int], None]] = lambda name, total: lambda more: None

    @property
    def main(self) -> bool:
        return self.rank == 0
