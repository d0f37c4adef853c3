"""Starts a command, or its ranks, by forking one process that has imported everything: that takes a fraction of a second each.

Each is a process of its own, a rank with the environment that torchrun gives it, and runs what `python src/train.py …` runs.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["ldmlab.pipeline.run", "ldmlab.reports.publish", "hydra", "tokenizers", "accelerate", "torch._dynamo",
     "torch.distributed.fsdp", "torch.distributed.checkpoint"]
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300.0


def started(ranks: int, work: Callable[..., None], *args: Any) -> list[Any]:
    """One process a rank that calls `work(*args)`; one alone has no launcher's environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    each = [given | {"RANK": str(n), "LOCAL_RANK": str(n)} if ranks > 1 else {} for n in range(ranks)]
    processes = [FORKS.Process(target=_rank, args=(environment, work, *args)) for environment in each]
    for process in processes:
        process.start()
    return processes


def finished(processes: list[Any]) -> list[int]:
    """Exit codes. When one rank is killed the others are too, as a launcher would do; so they are after `SECONDS`."""
    deadline = time.monotonic() + SECONDS
    while any(process.is_alive() for process in processes):
        if time.monotonic() > deadline or any(process.exitcode for process in processes):
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    return [process.exitcode for process in processes]


def killed(seen: Callable[[], object], delay: float, number: int, log: Path, words: list[str]) -> int:
    """Exit code of one process of the command that gets a signal some seconds after `seen()` is true for the first time."""
    (process,) = started(1, train, words, log)
    deadline = time.monotonic() + SECONDS
    while process.is_alive() and not seen():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(process.pid, number)
    (code,) = finished([process])
    return code


def _rank(environment: dict[str, str], work: Callable[..., None], *args: Any) -> None:
    import torch

    gc.freeze()  # what the fork shares is neither walked nor copied
    os.environ.update(environment)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    work(*args)


def silently(work: Callable[[], object]) -> None:
    """`work()`, and what it prints nowhere."""
    with open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    work()


def train(words: list[str], log: Path, killed_in_save: int | None = None, measured: Path | None = None) -> None:
    """`python src/train.py <words>`, its output at the end of `log`.

    killed_in_save: rank 1, or the only rank, gets a SIGKILL in the n-th checkpoint, when its part is written and the checkpoint
    is not sealed. measured: where rank 0 writes what it held and sent (`held_and_sent`).
    """
    from ldmlab.cli import command
    from train import train as task

    file = log.open("a", buffering=1)
    sys.stdout = sys.stderr = file
    for descriptor in (1, 2):  # of the ranks that it may start
        os.dup2(file.fileno(), descriptor)
    if killed_in_save is not None and os.environ.get("RANK", "1") == "1":
        _kill_in_save(killed_in_save)
    if measured is not None and os.environ["RANK"] == "0":
        held_and_sent(measured)
    sys.argv = ["src/train.py", *words]
    command(task, ranks=True)


def _kill_in_save(count: int) -> None:
    from ldmlab.store import checkpoint

    digest, seen = checkpoint.sha256_file, 0

    def hash_or_die(path: Path) -> str:
        nonlocal seen
        if path.parent.name.startswith(".writing-") and path.suffix in (".distcp", ".safetensors"):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
        return digest(path)

    checkpoint.sha256_file = hash_or_die


def held_and_sent(file: Path) -> None:
    """Makes the training of this process write `file`: bytes of storages that this rank holds, and what its first step's
    collectives moved (`traffic`). A step after a validation finds what is in no block still gathered."""
    from ldmlab.pipeline import context
    from ldmlab.training import loop
    from ldmlab.training.dtensors import local

    def bytes_of(tensors: Any) -> int:
        storages = {local(t).untyped_storage()._cdata: local(t).untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    step, fit, found = loop.train_step, context.fit, {}

    def train_step(*args: Any) -> Any:
        if "sent" in found:
            return step(*args)
        with traffic() as found["sent"]:
            return step(*args)

    def measured_fit(
        name: str, loss: Any, batches: Any, budget: Any, optimizers: Any, averages: Any, *rest: Any
    ) -> Any:
        (optimizer,) = optimizers.values()
        (module,) = loss.modules.values()

        def gradients(*_: Any) -> None:
            found["gradients"] = bytes_of(p.grad for p in module.parameters() if p.grad is not None)

        optimizer.register_step_pre_hook(gradients)
        done = fit(name, loss, batches, budget, optimizers, averages, *rest)
        found["weights"] = bytes_of(module.parameters())
        found["optimizer"] = bytes_of(v for state in optimizer.state.values() for v in state.values() if v.ndim)
        found["averages"] = bytes_of(t for average in averages.values() for t in average.shadow)
        file.write_text(json.dumps(found))
        return done

    loop.train_step, context.fit = train_step, measured_fit


@contextlib.contextmanager
def traffic() -> Iterator[list[tuple[str, int]]]:
    """(operator, bytes of its larger side) of every collective within."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    seen: list[tuple[str, int]] = []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if "c10d" in func.namespace:
                tensors = [t for t in tree_iter((args, out)) if hasattr(t, "nbytes")]
                seen.append((f"{func.namespace}.{func.__name__}", max((t.nbytes for t in tensors), default=0)))
            return out

    with Listening():
        yield seen
