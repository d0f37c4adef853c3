"""`check=device`: the whole composition on a GPU that is not there, and what a real one would have waited for.

Every stage runs as always, in a store of its own that is removed afterwards; values that come back from the device are made up, so no
number of it means anything. A *step* is one optimiser step of training with the reading of its batch, or one evaluation of the guided
denoiser in sampling. See `ldmlab.pipeline.pretend` for what is seen and what cannot be.
"""

import contextlib
import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmlab import build, terminal
from ldmlab.config.compose import Composed
from ldmlab.data.batches import Batches
from ldmlab.errors import UserError
from ldmlab.pipeline import context, run, sampling
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.pretend import CUDA, Event, PretendedCuda
from ldmlab.pipeline.replaced import replaced
from ldmlab.training import loop

WAITS = ("read", "pageable", "shape")  # a step without any of them never waits
ONCE = ("diffusion/schedules.py",)  # tables that are sent at their first use, and stay


@dataclass
class Steps:
    """Of one kind of step: how many, and what happened in them."""

    count: int = 0
    events: list[Event] = field(default_factory=list)

    @property
    def wrong(self) -> list[Event]:
        """What should not happen in a step."""
        kinds = (*WAITS, "float64")
        return [event for event in self.events if event.kind in kinds and not event.place.startswith(ONCE)]

    def copies(self) -> float:
        """To the device, a step."""
        return sum(event.kind == "copy" for event in self.events) / max(self.count, 1)


@dataclass
class Seen:
    """Of a whole run: steps by name, and everything that happened."""

    steps: dict[str, Steps]
    events: list[Event]

    def outside(self) -> Counter[tuple[str, str]]:
        """(kind, file and function) → how often, of what is no part of a step."""
        inside = {id(event) for steps in self.steps.values() for event in steps.events}
        return Counter((e.kind, e.function) for e in self.events if id(e) not in inside and e.kind != "copy")


def check_device(composed: Composed) -> None:
    """Print what every kind of step does; UserError when one waits for the device or computes in float64 there."""
    seen = watched(composed)
    rows = [["step", "steps", "waits", "float64", "copies a step"]]
    for name, steps in seen.steps.items():
        counts = Counter(event.kind for event in steps.wrong)
        waits = sum(counts[kind] for kind in WAITS)
        rows.append([name, str(steps.count), str(waits), str(counts["float64"]), f"{steps.copies():.3g}"])
    print(terminal.table(rows))
    print("\n between steps (setting up, logs, checkpoints, results):")
    for (kind, function), count in sorted(seen.outside().items(), key=lambda item: item[0][::-1]):
        print(f" {count:7d} {kind:9s} {function}")
    if wrong := {str(event): None for steps in seen.steps.values() for event in steps.wrong}:
        raise UserError("check=device: a step waits for the GPU, or is slow there:\n " + "\n ".join(wrong))


def watched(composed: Composed) -> Seen:
    """The composition's stages, up to `until`, on a pretended GPU."""
    device = PretendedCuda()
    steps: dict[str, Steps] = {}

    def counting(name: Callable[..., str], work: Callable[..., Any], new: bool) -> Callable[..., Any]:
        @functools.wraps(work)
        def counted(*args: Any, **kwargs: Any) -> Any:
            before = len(device.events)
            try:
                return work(*args, **kwargs)
            finally:
                own = steps.setdefault(name(*args), Steps())
                own.count += new
                own.events += device.events[before:]

        return counted

    training: list[str] = []  # the players of the training that runs

    def named(loss: Any, *rest: Any) -> str:
        return "train " + " + ".join(loss.players)

    def fit(name: str, loss: Any, *args: Any, work: Callable[..., Any] = loop.fit, **kwargs: Any) -> Any:
        training.append(named(loss))
        try:
            return work(name, loss, *args, **kwargs)
        finally:
            training.clear()

    def draw(sampler: Any, denoise: Any, *args: Any, work: Callable[..., Any] = sampling.draw, **kwargs: Any) -> Any:
        return work(sampler, counting(lambda *a: "sample", denoise, True), *args, **kwargs)

    with tempfile.TemporaryDirectory(prefix="ldmlab-check-") as store, contextlib.ExitStack() as stack:
        cfg = build.editable(composed.cfg)
        cfg.store = str(Path(store))
        step = counting(lambda *a: (training or ["data"])[0], Batches.step, False)
        stack.enter_context(replaced(loop, train_step=counting(named, loop.train_step, True)))
        stack.enter_context(replaced(Batches, step=step))
        stack.enter_context(replaced(context, fit=fit))
        stack.enter_context(replaced(sampling, draw=draw))
        accelerator = stack.enter_context(pretended_accelerator())
        plan = run.prepare(Composed(cfg, composed.choices))
        print(terminal.table(run.table(plan, costs=False)) + "\n")
        with device:
            run.make_all(Context(cfg, plan, accelerator))
    return Seen({name: own for name, own in steps.items() if own.count}, device.events)


@contextlib.contextmanager
def pretended_accelerator() -> Iterator[Any]:
    """Accelerate's, told that its device is a GPU."""
    accelerator = make_accelerator("cpu")
    before = accelerator.state.device
    accelerator.state.device = CUDA
    try:
        yield accelerator
    finally:
        accelerator.state.device = before
