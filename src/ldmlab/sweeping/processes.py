"""Cells of a sweep side by side, one operating-system process each: what fails leaves the others running.

The store's locks keep two cells from making one stage; here the cell that shares least with those that run is started first,
so that they seldom wait for each other.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmlab.pipeline.launch import PARENT, STOPPED
from ldmlab.sweeping.board import Board, State
from ldmlab.sweeping.forecast import CellForecast
from ldmlab.sweeping.measured import by_measurement
from ldmlab.terminal import read_progress, tail

POLL = 0.2  # seconds between looks at the processes


@dataclass(frozen=True)
class Slots:
    """How many cells run at once, and what each slot's process gets: threads, or `each` of the machine's GPUs."""

    count: int
    gpus: int = 0
    cores: int = 1
    each: int = 1

    @property
    def devices(self) -> int:
        """What the work is divided among: GPUs; the cores together count as one."""
        return min(self.count * self.each, self.gpus) if self.gpus else 1

    def environment(self, slot: int) -> dict[str, str]:
        given = dict(os.environ)
        if self.gpus:
            # of the GPUs that this command may use itself: 4,5,6,7 in a job that has half a machine
            visible = given.get("CUDA_VISIBLE_DEVICES", "").split(",")
            names = visible if len(visible) == self.gpus else [str(number) for number in range(self.gpus)]
            own = [names[(slot * self.each + number) % self.gpus] for number in range(self.each)]
            return given | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if self.count > 1 else {})
        return given | (
            {}
            if "OMP_NUM_THREADS" in given or self.count == 1
            else {"OMP_NUM_THREADS": str(max(1, self.cores // self.count))}
        )


def slots(parallel: Any, runtime: Any) -> Slots:
    """`parallel=auto`: a cell a GPU, or a cell a core with one thread each; fewer where `runtime` gives a cell more of them."""
    import torch

    gpus = torch.cuda.device_count() if runtime.device != "cpu" else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = runtime.processes * (1 if gpus else runtime.threads or 1)
    count = max(1, (gpus or cores) // each) if parallel == "auto" else int(parallel)
    return Slots(count, gpus if runtime.processes <= gpus else 0, cores, runtime.processes)


@dataclass
class Running:
    """A cell's process."""

    number: int
    slot: int
    process: "subprocess.Popen[bytes]"
    log: Path


@dataclass
class Sweep:
    """Runs cells until none is left or a signal comes. exits: each finished cell's exit code. changed: called after each end."""

    cells: Sequence[CellForecast]
    commands: Sequence[list[str]]
    logs: Sequence[Path]
    slots: Slots
    board: Board
    changed: Callable[["Sweep"], None] = lambda sweep: None
    exits: dict[int, int] = field(default_factory=dict)
    stopping: bool = False

    def run(self) -> None:
        pending, running = list(range(len(self.cells))), list[Running]()
        self.changed(self)
        with self._listening(running):
            while running or (pending and not self.stopping):
                while pending and not self.stopping and len(running) < self.slots.count:
                    number = self._next(pending, running)
                    pending.remove(number)
                    running.append(self._start(number, running))
                for each in list(running):
                    self._look(each)
                    if each.number in self.exits:
                        running.remove(each)
                        self.changed(self)
                time.sleep(POLL)

    def _next(self, pending: list[int], running: list[Running]) -> int:
        """The cell that would wait least for a stage that another one is making or will make."""
        claimed = {stage.folder for each in running for stage in self.cells[each.number].stages if stage.missing}

        def shared(number: int) -> float:
            return sum(s.seconds + 1e-3 for s in self.cells[number].stages if s.folder in claimed and s.missing)

        return min(pending, key=lambda number: (shared(number), number))

    def _start(self, number: int, running: list[Running]) -> Running:
        slot = min(set(range(self.slots.count)) - {each.slot for each in running})
        environment = self.slots.environment(slot) | {PARENT: str(os.getpid())}
        with self.logs[number].open("wb") as log:
            process = subprocess.Popen(self.commands[number], stdout=log, stderr=subprocess.STDOUT, env=environment)
        self.board.update(number, State("", "running", self._left(number)))
        return Running(number, slot, process, self.logs[number])

    def _left(self, number: int, besides: frozenset[str] = frozenset()) -> float:
        """Seconds that a cell needs on its share of the machine."""
        share = 1 if self.slots.gpus else self.slots.count
        return self.cells[number].left(besides) * share

    def _look(self, each: Running) -> None:
        code = each.process.poll()
        if code is None:
            seen = read_progress(tail(each.log))
            if seen is not None:
                if seen.name != self.board.states[each.number].stage:  # one more has ended: its time is known
                    self.cells = by_measurement(self.cells)
                left = (
                    None
                    if seen.left is None
                    else seen.left + self._left(each.number, frozenset({seen.name.split()[0]}))
                )
                self.board.progress(each.number, seen.name, seen.share, left)
            return
        self.exits[each.number] = code
        said = {0: "done", STOPPED: "stopped"}.get(code, f"failed with exit code {code}")
        self.board.update(each.number, State(self.board.states[each.number].stage if code else "", said))

    @contextmanager
    def _listening(self, running: list[Running]) -> Iterator[None]:
        """A signal stops the sweep: no new cell starts, running ones write a checkpoint and end."""

        def stop(number: int, frame: Any) -> None:
            self.stopping = True
            for each in running:
                if each.process.poll() is None:
                    each.process.send_signal(signal.SIGTERM)

        names = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {name: signal.signal(name, stop) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
            self.board.close()
