"""What runs inside a Slurm job: one command of ldmlab as all the job's tasks, its signals and its way back into the queue.

submitit starts a `SlurmJob` once per task. A signal (Slurm's before the time limit, at pre-emption, scancel's) becomes a SIGTERM for the
command, which writes a checkpoint and exits with 85; the first task then asks Slurm to queue the job again.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmlab.config.words import SWEEP_CHILD
from ldmlab.pipeline.launch import PARENT, STAGES
from ldmlab.store.card import stamp
from ldmlab.store.files import write_json

PORTS = range(20_000, 30_000)  # of the ranks' meeting place; below those that Linux deals out itself
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class SlurmJob:
    """A command (`argv`) whose output goes to `log` and whose end to `end`. stages: ids; makes these and no more of the run."""

    argv: list[str]
    log: Path
    end: Path
    stages: tuple[str, ...] = ()

    def __call__(self) -> None:
        told: list[int] = []
        for name in SIGNALS:  # in the place of submitit's, which would queue the job again before there is a checkpoint
            signal.signal(name, lambda number, frame: told.append(number))
        first = int(os.environ["SLURM_PROCID"]) == 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *self.argv],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                preexec_fn=_deaf,
            )
            code = _wait(process, told)
        queued_again = first and bool(told and code) and self._again()
        if first and not queued_again:
            write_json(
                self.end, {"exit_code": code, "host": os.environ.get("SLURMD_NODENAME"), "time": stamp(time.time())}
            )
        # one task alone speaks for a job that was told to stop: the others' codes would end it before it is queued again
        sys.exit(code if first or not told else 0)

    def environment(self) -> dict[str, str]:
        """What makes the command one rank of the job's tasks, or a single process of a job with one task."""
        own = {SWEEP_CHILD: "1", PARENT: str(os.getpid())} | ({STAGES: ",".join(self.stages)} if self.stages else {})
        return {**os.environ, **own, **ranks(os.environ)}

    def _again(self) -> bool:
        """Ask Slurm to queue the job again; False when it ends for good (scancel) or is being queued by someone else."""
        job = os.environ["SLURM_JOB_ID"]
        if _said("squeue", "--noheader", "--jobs", job, "--format=%T") != "RUNNING":
            return False
        return _said("scontrol", "requeue", job) is not None


def ranks(slurm: Any) -> dict[str, str]:
    """From a task's variables of Slurm to those by which PyTorch's processes find each other."""
    count = int(slurm["SLURM_NTASKS"])
    if count == 1:
        return {}
    port = PORTS[int(slurm["SLURM_JOB_ID"]) % len(PORTS)]
    return {
        "RANK": slurm["SLURM_PROCID"], "WORLD_SIZE": str(count), "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(count // int(slurm["SLURM_JOB_NUM_NODES"])), "GROUP_RANK": slurm["SLURM_NODEID"],
        "GROUP_WORLD_SIZE": slurm["SLURM_JOB_NUM_NODES"],
        "MASTER_ADDR": slurm["SLURM_LAUNCH_NODE_IPADDR"], "MASTER_PORT": str(port),  # the first task's node runs srun
    }  # fmt: skip


def _deaf() -> None:
    """Slurm signals every process of a job; the command listens to what its parent makes of it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _wait(process: "subprocess.Popen[bytes]", told: list[int]) -> int:
    passed_on = 0
    while (code := process.poll()) is None:
        if len(told) > passed_on:
            passed_on = len(told)
            process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    return code if code >= 0 else 128 - code  # killed by a signal: the shell's convention


def _said(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
