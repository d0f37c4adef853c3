"""Processes: how a command becomes ranks, and how a rank finds the others.

Training is Accelerate's. What is here: starting `runtime.processes` ranks of the same command (what torchrun does, plus that our
exit code 85 and a signal pass through unchanged), and the check that Accelerate sees as many ranks as were promised. On a machine
without a GPU a plain `Accelerator()` under torchrun makes every rank believe that it is alone; two trainings would then write
into one folder.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

from ldmlab.errors import ConfigError, UserError

STOPPED = 85  # exit code: a training was told to stop, and wrote a checkpoint
PARENT = "LDMLAB_SWEEP_PARENT"  # a sweep's process id, in the environment of its cells
STAGES = "LDMLAB_STAGES"  # ids, in the environment of a job that makes these stages of a run and no more


def end_with_parent() -> None:
    """A cell of a sweep that was killed gets a SIGTERM, so that it writes a checkpoint and ends too. Linux alone can do so."""
    parent = os.environ.pop(PARENT, None)  # of this process alone: ranks that it starts have another parent
    if parent is None or sys.platform != "linux":
        return
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it was killed before this line
        os.kill(os.getpid(), signal.SIGTERM)


def under_launcher() -> bool:
    """Whether this process is one rank of several (torchrun, or `start_ranks` below)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start_ranks(processes: int, argv: list[str]) -> int:
    """Run this command once per rank on this machine; the exit code of the first rank that fails, or 0.

    When one rank ends badly the others are stopped (SIGTERM), since they would wait for it forever. Signals go to all.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    base |= {"LOCAL_WORLD_SIZE": str(processes)}
    ranks = [
        subprocess.Popen([sys.executable, *argv], env={**base, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(processes)
    ]

    def forward(number: int, frame: Any) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the ranks as well
    return _wait(ranks)


def _wait(ranks: list["subprocess.Popen[bytes]"], grace: float = 60.0) -> int:
    first, deadline = 0, float("inf")
    while any(rank.poll() is None for rank in ranks):
        codes = [rank.returncode for rank in ranks if rank.returncode]
        if codes and not first:
            first, deadline = codes[0], time.monotonic() + grace
            for rank in ranks:
                if rank.poll() is None:
                    rank.terminate()
        if time.monotonic() > deadline:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
        time.sleep(0.05)
    first = first or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return first if first >= 0 else 128 - first  # killed by a signal: the shell's convention


def check_device(device: str) -> None:
    """ConfigError when `runtime.device=cuda` and there is none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but torch sees no CUDA device. Use runtime.device=cpu or auto.")


def make_accelerator(device: str, timeout: float = 3600.0) -> Any:
    """Accelerate's view of this process, checked against what the launcher promised. timeout: seconds that ranks wait for each other.

    Raises ConfigError when `runtime.device=cuda` and there is none, UserError when ranks are missing.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    check_device(device)
    cpu = device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))])
    promised = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != promised:
        raise UserError(
            f"the launcher started {promised} processes, but Accelerate sees {accelerator.num_processes}. "
            "Start with torchrun or runtime.processes=N, not with `accelerate launch --cpu`."
        )
    return accelerator


def set_threads(threads: int | None) -> None:
    """CPU threads of this rank: as given, else as OMP_NUM_THREADS says, else the cores divided by the ranks on this machine."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    shared = int(given) if given.isdecimal() and int(given) > 0 else cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(threads or max(1, shared))


def keep_memory() -> None:
    """Let freed memory stay with this process, as PyTorch's allocator on a GPU does.

    glibc gives blocks of some megabytes back to the system, which fills them with zeros when the next tensor wants them: on a CPU a
    fifth of a guided step at 512x1024 and a quarter of encoding 64 images (docs/measurements.md). The peak stays what it was. Nothing
    happens where the C library is another one, or where the environment says how it shall allocate (MALLOC_…).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    import ctypes

    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # no block is a mapping of its own, which `free` would end
        mallopt(M_TRIM_THRESHOLD, -1)  # the heap is never cut back
