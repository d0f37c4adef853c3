"""How the ranks of a command meet, and who is named when one does not come or does not answer any more.

Beside PyTorch's process group, which says only that something timed out, each rank writes its name into the same store: once when it
comes, and once more when a collective operation failed. Who has not written is who is missing.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ldmlab.errors import TrainingError

GRACE = 20.0  # seconds in which the ranks that noticed a failed operation write so
PAUSE = 0.1  # seconds between looks at the store
WAITED = (
    "Timed out",
    "Connection closed by peer",
    "Connection reset",
)  # by a rank, or by the one that it was connected with
FAILED = ("gloo", "Gloo", "NCCL", "nccl", *WAITED)


class MissingRanks(TrainingError):
    """Ranks that did not come, or answer no more: said by every node that is there."""


@dataclass
class Meeting:
    """This rank and the store that all ranks write to. token: of this meeting, since a store may outlive several; timeout: seconds."""

    store: Any
    rank: int
    count: int
    timeout: float
    token: str = ""

    def call(self, what: str, seconds: float) -> list[int]:
        """Write down that this rank is here; which others have not within so many seconds."""
        self.store.set(f"{self.token}/{what}/{self.rank}", "1")
        end = time.monotonic() + seconds
        while missing := [r for r in range(self.count) if not self.store.check([f"{self.token}/{what}/{r}"])]:
            if time.monotonic() > end:
                break
            time.sleep(PAUSE)
        return missing

    def host(self, rank: int) -> str:
        """Where a rank said that it runs; "" when it never came."""
        key = f"{self.token}/here/{rank}"
        return self.store.get(key).decode().partition(" ")[2] if self.store.check([key]) else ""

    def named(self, ranks: Sequence[int]) -> str:
        """`rank 2 on hostb (node 1 of 2), rank 3 (node 1 of 2)`"""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        hosts = {rank: self.host(rank) for rank in ranks}
        return ", ".join(
            f"rank {r}{f' on {host}' if host else ''} (node {r // local} of {self.count // local})"
            for r, host in hosts.items()
        )

    def first(self) -> list[int]:
        """The first rank's part: ask, wait for the answers to this very question, confirm them; who has not answered in time."""
        self.token = uuid.uuid4().hex
        self.store.set("ask", self.token)
        self.store.set(f"{self.token}/here/0", f"- {socket.gethostname()}")
        waiting, end = set(range(1, self.count)), time.monotonic() + self.timeout
        while waiting and time.monotonic() < end:
            for rank in sorted(waiting):
                if self.store.check([key := f"{self.token}/here/{rank}"]):
                    self.store.set(f"{self.token}/seen/{rank}", self.store.get(key).decode().partition(" ")[0])
                    waiting.remove(rank)
            time.sleep(PAUSE if waiting else 0)
        return sorted(waiting)

    def other(self) -> bool:
        """Another rank's part: answer what is asked until the answer is confirmed. An old question may still stand in the store."""
        own, end = uuid.uuid4().hex, time.monotonic() + self.timeout
        while time.monotonic() < end:
            if self.store.check(["ask"]):
                self.token = self.store.get("ask").decode()
                self.store.set(f"{self.token}/here/{self.rank}", f"{own} {socket.gethostname()}")
                seen = f"{self.token}/seen/{self.rank}"
                if self.store.check([seen]) and self.store.get(seen).decode() == own:
                    return True
            time.sleep(PAUSE)
        return False

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Names the ranks that no longer answer where an operation that all take part in fails inside the block.

        Raises MissingRanks; TrainingError where all answer and one was only slower than `timeout`.
        """
        try:
            yield
        except RuntimeError as error:
            if not failed_together(error):
                raise
            try:
                missing = self.named(self.call("failed", GRACE))
            except RuntimeError:
                missing = f"rank 0 at {_address()}, where the ranks meet,"
            this = f"this is rank {self.rank} on {socket.gethostname()}"
            again = "The same command goes on from the last checkpoint"
            if missing:
                raise MissingRanks(
                    f"{missing} does not answer any more (runtime.timeout={self.timeout:g} s; {this}). Its own output says why, "
                    f"unless it was killed. {again}."
                ) from None
            if not any(word in str(error) for word in WAITED):
                raise
            raise TrainingError(
                f"the ranks waited for one of them for more than runtime.timeout={self.timeout:g} s, and all of them answer ({this}). "
                f"{again}; give it a larger runtime.timeout."
            ) from None


def failed_together(error: RuntimeError) -> bool:
    """Whether an operation of several ranks failed, and not this rank's own work."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in kinds or (type(error) is RuntimeError and any(word in str(error) for word in FAILED))


def meet(timeout: float) -> Meeting | None:
    """Wait until all ranks that the launcher promised are here; None for a single process.

    Raises MissingRanks that names who is missing after `timeout` seconds.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count == 1 or "MASTER_ADDR" not in os.environ:
        return None
    from torch.distributed import PrefixStore, TCPStore

    # torchrun's agent serves a store already; else rank 0 does, and PyTorch's process group uses the same one
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    host, port, here = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), socket.gethostname()
    within = f"within runtime.timeout={timeout:g} s"
    try:
        if not serves:
            _reached(host, port, time.monotonic() + timeout)  # PyTorch would print a stack of its own for each attempt
        tcp = TCPStore(host, port, count, serves, timedelta(seconds=timeout), wait_for_workers=False, multi_tenant=True)
        meeting = Meeting(PrefixStore("ldmlab", tcp), rank, count, timeout)
        missing = meeting.first() if rank == 0 else [] if meeting.other() else [0]
    except (RuntimeError, OSError):
        raise MissingRanks(
            f"rank {rank} on {here} does not reach rank 0 at {_address()} {within}. Is that node up, and may this one connect to it there?"
        ) from None
    if missing and rank == 0:
        came = [r for r in range(count) if r not in missing]
        raise MissingRanks(
            f"{meeting.named(missing)} did not come {within}. Here: {meeting.named(came)}. See what that node printed; a slow one "
            "needs a larger runtime.timeout."
        )
    if missing:
        raise MissingRanks(f"rank 0 at {_address()} did not answer rank {rank} on {here} {within}; see its output.")
    return meeting


def _reached(host: str, port: int, end: float) -> None:
    """Return when somebody listens there. Raises OSError when nobody does until then."""
    while True:
        try:
            socket.create_connection((host, port), max(PAUSE, min(5.0, end - time.monotonic()))).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE)


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
