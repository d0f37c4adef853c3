"""What a store knows of jobs in a scheduler's queue: one small file a cell and a shared stage in `<store>/queue/`.

The store says what is done, the scheduler what waits and runs, and a job's own last word how it ended. A job of which none of the
three knows anything was killed with its node.
"""

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import DataError, UserError
from ldmlab.pipeline.launch import STOPPED
from ldmlab.store.files import read_json, write_json
from ldmlab.sweeping.board import State
from ldmlab.sweeping.forecast import CellForecast, StageForecast
from ldmlab.terminal import read_progress, tail

FORMAT = "%i|%T|%N|%r"  # of squeue: id, state, nodes, reason


class InQueue(NamedTuple):
    """A job as Slurm sees it now. state: PENDING, RUNNING, COMPLETING …"""

    state: str
    nodes: str
    reason: str


class Submitted(NamedTuple):
    """A job that was submitted. needs: the jobs that it waits for; log, end: files inside the store."""

    job: str
    needs: list[str]
    log: str
    end: str


class Queue:
    """The jobs of one store. `now`: those that Slurm holds at this moment, by id."""

    def __init__(self, store: Path):
        self.store, self.folder = store, store / "queue"
        self.now: dict[str, InQueue] = {}

    def look(self) -> "Queue":
        """Ask Slurm once. Raises UserError when it does not answer."""
        self.now = squeue()
        return self

    def path(self, of: CellForecast | StageForecast) -> Path:
        kind, folder = ("cell", of.run) if isinstance(of, CellForecast) else ("stage", of.folder)
        return self.folder / f"{kind}-{folder.name.rpartition('-')[2]}.json"

    def end(self, of: CellForecast | StageForecast) -> Path:
        return self.path(of).with_suffix(".end")

    def submitted(self, of: CellForecast | StageForecast) -> Submitted | None:
        return _read(self.path(of))

    def active(self, of: CellForecast | StageForecast) -> Submitted | None:
        """Its job, where Slurm still holds it."""
        found = self.submitted(of)
        return found if found is not None and found.job in self.now else None

    def write(self, of: CellForecast | StageForecast, job: Submitted) -> None:
        write_json(self.path(of), job._asdict())

    def forget(self, of: CellForecast | StageForecast) -> None:
        self.path(of).unlink(missing_ok=True)

    def everyone(self) -> Iterator[Submitted]:
        """Each cell's job that Slurm still holds."""
        for path in sorted(self.folder.glob("cell-*.json")):
            if (found := _read(path)) is not None and found.job in self.now:
                yield found

    def exit_code(self, of: CellForecast | StageForecast) -> int | None:
        """What its job said last; None when it is not over, or ended without a word."""
        job = self.submitted(of)
        path = self.store / job.end if job else None
        return int(read_json(path)["exit_code"]) if path is not None and path.exists() else None

    def state(self, cell: CellForecast) -> State:
        """What the store, Slurm and the job itself say of a cell."""
        if cell.done:
            return State("", "done")
        job = self.submitted(cell)
        if job is None:
            stage = next((stage for stage in cell.stages if stage.missing), None)
            return State(stage.name, stage.state) if stage else State("", "not run yet")
        if (held := self.now.get(job.job)) is not None:
            return self._held(cell, job, held)
        code = self.exit_code(cell)
        if code is not None:
            return State("", "stopped" if code == STOPPED else f"failed with exit code {code}")
        if (stage := self.failed(cell)) is not None:
            return State(stage.name, f"failed with exit code {self.exit_code(stage)}")
        return State("", "ended without a word")

    def failed(self, cell: CellForecast) -> StageForecast | None:
        """The shared stage whose failure made Slurm take the cell out of the queue; None without one."""
        ended = [stage for stage in cell.stages if stage.missing and not self.active(stage) and not self.active(cell)]
        return next((stage for stage in ended if self.exit_code(stage)), None)

    def log(self, cell: CellForecast) -> Path | None:
        """Where the last job of a cell, or of the shared stage that failed before it, has written."""
        job = self.submitted(self.failed(cell) or cell)
        return self.store / job.log if job else None

    def _held(self, cell: CellForecast, job: Submitted, held: InQueue) -> State:
        if held.state == "PENDING":
            above = [stage for stage in cell.stages if stage.missing and self.active(stage)]
            if above and held.reason == "Dependency":
                state = self._at_work(self.active(above[0]))
                return State(above[0].name, f"waits for the shared {above[0].name}{f', {state}' if state else ''}")
            return State("", f"queued ({held.reason})")
        seen = read_progress(tail(self.store / job.log))
        where = f"{held.state.lower()} on {held.nodes}"
        return State(seen.name, f"{where} {seen.share}", seen.left) if seen else State("", where)

    def _at_work(self, job: Submitted | None) -> str:
        held = self.now.get(job.job) if job else None
        seen = read_progress(tail(self.store / job.log)) if job and held and held.state == "RUNNING" else None
        return seen.share if seen else ""


def _read(path: Path) -> Submitted | None:
    if not path.exists():
        return None
    try:
        return Submitted(**read_json(path))
    except TypeError:
        raise DataError(f"{path} is not what was written. Remove it and submit the command again.") from None


def squeue() -> dict[str, InQueue]:
    """This user's jobs that have not ended, by id (`12`, `13_0`). Raises UserError when Slurm does not answer."""
    found = {}
    for line in said("squeue", "--me", "--array", "--noheader", f"--format={FORMAT}").splitlines():
        job, *rest = line.split("|")
        found[job] = InQueue(*rest)
    return found


def said(*command: str) -> str:
    """A command of Slurm's and what it printed. Raises UserError when it is not there or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine. Type the command on one of the cluster's own.") from None
    if done.returncode:
        why = re.sub(rf"^{command[0]}: (error: )?", "", done.stderr.strip().partition("\n")[0])
        raise UserError(f"{command[0]} refused: {why}")
    return done.stdout


def waits_of(jobs: Sequence[str]) -> dict[str, Any]:
    """sbatch's words for a job that starts after others ended well, and leaves the queue when one did not."""
    return {"dependency": f"afterok:{':'.join(jobs)}", "kill-on-invalid-dep": "yes"} if jobs else {}
