"""A sweep, or one run, as jobs of a Slurm cluster: a job for each group of shared stages, an array of cells behind it.

Everything that can be wrong with a cell is found before anything is submitted, as in a sweep on one machine. Cells that are done or
still in the queue are not submitted again, so the same command goes on with what is missing.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmlab.errors import ConfigError, UserError
from ldmlab.pipeline.launch import STOPPED
from ldmlab.store.files import write_json
from ldmlab.sweeping.board import Board
from ldmlab.sweeping.forecast import CellForecast, StageForecast
from ldmlab.sweeping.queue import Queue, Submitted, said, waits_of
from ldmlab.sweeping.shared import Shared, shared
from ldmlab.sweeping.slurm_job import SlurmJob
from ldmlab.terminal import clock, table

POLL = 5.0  # seconds between questions to Slurm


@dataclass
class Cluster:
    """Submits cells. params: options of `hydra.launcher`; script: what runs a cell; logs: the sweep's folder."""

    cells: Sequence[CellForecast]
    params: dict[str, Any]
    script: str
    logs: Path
    queue: Queue

    def submit(self) -> list[str]:
        """Submit what is neither done nor in the queue; ids of the new jobs. Raises UserError when Slurm refuses."""
        self.queue.look()
        wanted = [n for n, cell in enumerate(self.cells) if not cell.done and not self.queue.active(cell)]
        groups = shared(self.cells) if wanted else []
        jobs: list[str] = []
        made: list[str] = []  # by group: the job that makes it
        for group in groups:
            held = [job.job for stage in self._stages(group) if (job := self.queue.active(stage))]
            if held:
                made.append(held[0])
            else:
                made += (new := [self._submit_shared(group, [made[index] for index in group.on])])
                jobs += new
        behind: dict[tuple[str, ...], list[int]] = {}
        for number in wanted:
            needs = tuple(made[index] for index, group in enumerate(groups) if number in group.cells)
            behind.setdefault(needs, []).append(number)
        for needs, numbers in behind.items():
            jobs += self._submit_cells(numbers, list(needs))
        return jobs

    def _stages(self, group: Shared) -> list[StageForecast]:
        return [stage for stage in self.cells[group.cells[0]].stages if stage.folder in group.folders]

    def _submit_shared(self, group: Shared, needs: list[str]) -> str:
        cell, stages = self.cells[group.cells[0]], self._stages(group)
        log, end = self.logs / f"shared-{stages[0].id}.log", self.queue.end(stages[0])
        job = SlurmJob([self.script, *cell.words], log, end, tuple(stage.id for stage in stages))
        (id,) = self._sbatch([job], needs, "-shared")
        for stage in stages:
            self.queue.write(stage, self._submitted(id, needs, job))
        return id

    def _submit_cells(self, numbers: list[int], needs: list[str]) -> list[str]:
        jobs = []
        for cell in (self.cells[number] for number in numbers):
            log = self.logs / f"job-{cell.run.name.rpartition('-')[2]}.log"
            jobs.append(SlurmJob([self.script, *cell.words], log, self.queue.end(cell)))
        ids = self._sbatch(jobs, needs)
        for number, job, id in zip(numbers, jobs, ids, strict=True):
            self.queue.write(self.cells[number], self._submitted(id, needs, job))
        return ids

    def _submitted(self, id: str, needs: list[str], job: SlurmJob) -> Submitted:
        log, end = (os.path.relpath(path, self.queue.store) for path in (job.log, job.end))
        return Submitted(id, needs, log, end)

    def _sbatch(self, jobs: list[SlurmJob], needs: list[str], suffix: str = "") -> list[str]:
        """Several jobs become an array."""
        from submitit.core.utils import FailedJobError

        for job in jobs:
            job.end.unlink(missing_ok=True)
        try:
            made = executor(self.params, needs, suffix).submit_array(jobs)
        except FailedJobError as error:
            why = str(error).strip().splitlines()[-1].removeprefix("sbatch: ").removeprefix("error: ")
            raise UserError(f"sbatch refused: {why}. What it is asked for is in hydra.launcher.…") from None
        return [job.job_id for job in made]


def executor(params: dict[str, Any], needs: list[str], suffix: str) -> Any:
    """submitit's executor with the options of `hydra.launcher`, as the plugin makes it, for jobs behind those that they need.

    params: those of `hydra_plugins.hydra_submitit_launcher.config.SlurmQueueConf`; `ranks_per_node` says what `tasks_per_node` means.
    """
    from dataclasses import fields

    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    given = {name: value for name, value in params.items() if name not in ("submitit_folder", "max_num_timeout")}
    given["name"] = f"{given['name']}{suffix}"
    given["additional_parameters"] = {"requeue": True, **waits_of(needs), **given["additional_parameters"]}
    given["srun_args"] = ["--kill-on-bad-exit=1"]  # a rank that fails would leave the others waiting for it
    plain = {field.name for field in fields(BaseQueueConf)}
    made = submitit.AutoExecutor(folder=params["submitit_folder"], cluster="slurm")
    made.update_parameters(**{name if name in plain else f"slurm_{name}": value for name, value in given.items()})
    return made


def ranks_per_node(params: dict[str, Any], processes: int) -> int:
    """`tasks_per_node` where it is given, else a rank a GPU, else `runtime.processes`. Raises ConfigError for a GPU of its own per task."""
    if params["gpus_per_task"] is not None:
        raise ConfigError(
            "hydra.launcher.gpus_per_task hides the other GPUs of a node from each rank, which then cannot reach them. "
            "Use hydra.launcher.gpus_per_node: each rank takes the GPU of its own number."
        )
    return params["tasks_per_node"] if params["tasks_per_node"] > 1 else max(params["gpus_per_node"] or 1, processes)


def submit(cluster: Cluster, study: str | None, wait: bool) -> int:
    """Submit what is missing, and with `wait` show the cells until all have ended; the command's exit code."""
    jobs = cluster.submit()
    again = "the same command" if study is None else f"-m sweeps={study} …"
    said_of = f"{len(jobs)} jobs submitted" if jobs else "nothing to submit"
    print(f" {said_of}; {again} with status=true shows them, with cancel=true takes them out of the queue", flush=True)
    write_jobs(cluster, study)
    return watch(cluster, study) if wait else 0


def watch(cluster: Cluster, study: str | None) -> int:
    """A board of the cells until none is queued. Ctrl-C ends the watching alone. 0: all done; 1: some failed; 85: some were stopped."""
    cells, queue = cluster.cells, cluster.queue
    board = Board([cell.label for cell in cells])
    try:
        while True:
            queue.look()
            for number, cell in enumerate(cells):
                board.update(number, queue.state(cell))
            if not any(queue.active(cell) for cell in cells):
                break
            time.sleep(POLL)
    except KeyboardInterrupt:
        print(" the jobs go on")
        return 130
    finally:
        board.close()
        write_jobs(cluster, study)
    return ended(cluster)


def ended(cluster: Cluster) -> int:
    """Say which cells are not done and where their logs lie; the exit code."""
    left = [cell for cell in cluster.cells if not cell.done]
    for cell in left:
        log = f"; see {path}" if (path := cluster.queue.log(cell)) else ""
        print(f"error: {' '.join(cell.words)} {' '.join(cluster.queue.state(cell)[:2]).strip()}{log}", file=sys.stderr)
    if left:
        print(
            f"{len(left)} of {len(cluster.cells)} jobs are not done. The same command submits what is missing.",
            file=sys.stderr,
        )
    codes = {cluster.queue.exit_code(cell) for cell in left}
    return 0 if not left else STOPPED if codes == {STOPPED} else 1


def write_jobs(cluster: Cluster, study: str | None) -> None:
    """`jobs.json` of the sweep's folder, as a sweep on one machine writes it."""
    jobs = []
    for number, cell in enumerate(cluster.cells):
        found = cluster.queue.submitted(cell)
        log = Path(found.log).name if found else f"job-{number}.log"
        jobs.append({"words": cell.words, "exit_code": 0 if cell.done else cluster.queue.exit_code(cell), "log": log})
    write_json(cluster.logs / "jobs.json", {"study": study, "jobs": jobs})


def status(cells: Sequence[CellForecast], queue: Queue) -> str:
    """A line a cell: what the store and, where jobs were submitted, Slurm know of it."""
    if any(queue.submitted(cell) for cell in cells):
        queue.look()
    lines = [["", "cell", "stage", "state", "left", "job"]]
    for number, cell in enumerate(cells):
        state, job = queue.state(cell), queue.active(cell)
        left = "" if state.left is None else f"about {clock(state.left)}"
        lines.append([str(number), cell.label, state.stage, state.state, left, job.job if job else ""])
    done = sum(cell.done for cell in cells)
    return f"{table(lines)}\n {done} of {len(cells)} cells done · {len(queue.now)} jobs of yours in Slurm's queue"


def cancel(cells: Sequence[CellForecast], queue: Queue) -> str:
    """Take the cells' jobs out of the queue, and those of shared stages that no other cell waits for. A training that runs writes a
    checkpoint first. Raises UserError when nothing of theirs is queued."""
    queue.look()
    own = {job.job: job for cell in cells if (job := queue.active(cell))}
    others = {needed for job in queue.everyone() if job.job not in own for needed in job.needs}
    stages = {job.job for cell in cells for stage in cell.stages if (job := queue.active(stage))}
    ids = sorted({*own, *(stages - others)})
    if not ids:
        raise UserError("cancel=true: none of these cells has a job in Slurm's queue.")
    said("scancel", *ids)
    every: list[CellForecast | StageForecast] = [*cells, *(stage for cell in cells for stage in cell.stages)]
    for each in every:
        if (job := queue.active(each)) is not None and job.job in ids:
            queue.forget(each)
    return f" {len(ids)} jobs cancelled: {' '.join(ids)}"
