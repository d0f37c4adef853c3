"""A sweep from its jobs to its end: plans, processes, the record of how each job ended, and what to type next."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldmlab.config.compose import load
from ldmlab.errors import UserError
from ldmlab.sweeping.board import Board
from ldmlab.sweeping.forecast import CellForecast, forecast, summary
from ldmlab.sweeping.processes import STOPPED, Slots, Sweep, slots

STOPPED_TEXT = "stopped; the same command goes on where it was"


def run(jobs: Sequence[list[str]], script: str, folder: str, study: str | None, parallel: Any) -> int:
    """Run the jobs of a sweep, or with `dry_run` print what they would do; the command's exit code.

    jobs: each one's words. script: what runs them. folder: of their logs and of jobs.json. study: the sweep's name.
    0: all done. 1: an error in the configuration before anything ran, or jobs that failed, listed. 85: stopped by a signal.
    """
    try:
        first = load(jobs[0]).cfg
        width = slots(parallel, first.runtime)
        cells = forecast(jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first.dry_run:
        print(summary(cells, width.count, width.devices))
        return 0
    logs = Path(folder).absolute()
    logs.mkdir(parents=True, exist_ok=True)
    print(f"{summary(cells, width.count, width.devices)}\n logs    {logs}/job-*.log", flush=True)
    sweep = _sweep(cells, script, logs, width, study)
    sweep.run()
    return _end(sweep, study)


def _sweep(cells: list[CellForecast], script: str, logs: Path, width: Slots, study: str | None) -> Sweep:
    commands = [[sys.executable, script, *cell.words] for cell in cells]
    files = [logs / f"job-{number}.log" for number in range(len(cells))]
    return Sweep(
        cells, commands, files, width, Board([c.label for c in cells]), lambda sweep: _record(sweep, logs, study)
    )


def _record(sweep: Sweep, logs: Path, study: str | None) -> None:
    """`jobs.json`: what the last sweep of this study runs, and how each job ended (null: not yet). A report tells from it what
    is missing."""
    from ldmlab.store.files import write_json

    jobs = [
        {"words": cell.words, "exit_code": sweep.exits.get(number), "log": log.name}
        for number, (cell, log) in enumerate(zip(sweep.cells, sweep.logs, strict=True))
    ]
    write_json(logs / "jobs.json", {"study": study, "jobs": jobs})


def _end(sweep: Sweep, study: str | None) -> int:
    """Say what failed and what to type next; the exit code."""
    failed = [n for n, code in sorted(sweep.exits.items()) if code and not (sweep.stopping or code == STOPPED)]
    for n in failed:
        print(
            f"error: {' '.join(sweep.cells[n].words)} exited with {sweep.exits[n]}; see {sweep.logs[n]}",
            file=sys.stderr,
        )
    if failed:
        of = f"{len(failed)} of {len(sweep.cells)} jobs failed"
        print(f"{of}. The same command runs what is missing.", file=sys.stderr)
    stopped = sweep.stopping or STOPPED in sweep.exits.values()
    if stopped:
        print(STOPPED_TEXT, file=sys.stderr)
    if study is not None:
        store = "".join(f" {shlex.quote(word)}" for word in sweep.cells[0].words if word.startswith("store="))
        print(f" report  python src/report.py study={study}{store}", flush=True)
    return 1 if failed else STOPPED if stopped else 0
