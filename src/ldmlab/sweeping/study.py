"""A sweep from its jobs to its end: plans, processes, the record of how each job ended, and what to type next."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldmlab.config.compose import load
from ldmlab.config.words import NO_CLUSTER, QUEUE_WORDS
from ldmlab.errors import ConfigError, UserError
from ldmlab.store.store import Store
from ldmlab.sweeping.board import Board
from ldmlab.sweeping.forecast import CellForecast, forecast, summary
from ldmlab.sweeping.measured import by_measurement
from ldmlab.sweeping.processes import STOPPED, Slots, Sweep, slots
from ldmlab.sweeping.queue import Queue
from ldmlab.sweeping.slurm import Cluster, cancel, ranks_per_node, status, submit

STOPPED_TEXT = "stopped; the same command goes on where it was"


def run(
    jobs: Sequence[list[str]],
    script: str,
    folder: str,
    study: str | None,
    parallel: Any,
    slurm: dict[str, Any] | None = None,
) -> int:
    """Run the jobs of a sweep, or with `dry_run` print what they would do; the command's exit code.

    jobs: each one's words. script: what runs them. folder: of their logs and of jobs.json. study: the sweep's name. slurm: options
    of `hydra.launcher` where the jobs go to a cluster's queue.
    0: all done. 1: an error in the configuration before anything ran, or jobs that failed, listed. 85: stopped by a signal.
    """
    try:
        return _run(jobs, script, Path(folder).absolute(), study, parallel, slurm)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(
    jobs: Sequence[list[str]], script: str, logs: Path, study: str | None, parallel: Any, slurm: dict[str, Any] | None
) -> int:
    first = load(jobs[0]).cfg
    asked = [word for word in ("submit", "status", "cancel") if first[word]]
    if slurm is None and "submit" in asked:
        raise ConfigError(NO_CLUSTER)
    width = slots(parallel, first.runtime) if slurm is None else None
    cells = forecast([_without(job, QUEUE_WORDS) for job in jobs], elsewhere=width is None or bool(asked))
    if width is not None:
        cells = by_measurement(cells)
    queue = Queue(Store(first.store).root)
    if "cancel" in asked:
        print(cancel(cells, queue))
        return 0
    if "status" in asked:
        print(status(cells, queue))
        return 0
    if slurm is not None:
        return _submit(Cluster(cells, slurm, script, logs, queue), first, study)
    assert width is not None
    if first.dry_run:
        print(summary(cells, width.count, width.devices))
        return 0
    logs.mkdir(parents=True, exist_ok=True)
    print(f"{summary(cells, width.count, width.devices)}\n logs    {logs}/job-*.log", flush=True)
    sweep = _sweep(cells, script, logs, width, study)
    sweep.run()
    return _end(sweep, study)


def _submit(cluster: Cluster, first: DictConfig, study: str | None) -> int:
    """The cells as jobs of a cluster: each has a machine of its own."""
    cluster.params["tasks_per_node"] = ranks_per_node(cluster.params, first.runtime.processes)
    side_by_side = min(len(cluster.cells), cluster.params["array_parallelism"])
    print(summary(cluster.cells, side_by_side, 1))
    if first.dry_run:
        return 0
    cluster.logs.mkdir(parents=True, exist_ok=True)
    print(f" logs    {cluster.logs}/job-*.log", flush=True)
    return submit(cluster, study, wait=not first.submit)


def _without(job: list[str], paths: Sequence[str]) -> list[str]:
    return [word for word in job if word.partition("=")[0] not in paths]


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
