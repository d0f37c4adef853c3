"""The order of events of any training: batch, loss, backward, step, average, log, checkpoint. Nothing about what a loss is.

One loop trains everything here (autoencoder with its discriminator, denoiser, the shapes classifier). It counts images; all its
state is in `Progressed` and in the tensors, so that a restart continues bit for bit (on a CPU; on a GPU up to the kernels' own
non-determinism).
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldmlab.data.batches import Batches
from ldmlab.errors import TrainingError
from ldmlab.randomness import seed_of
from ldmlab.store.checkpoint import Checkpoints, ShardedCheckpoints
from ldmlab.store.shards import OPTIMIZER
from ldmlab.terminal import Progress
from ldmlab.training.dtensors import placed, sharded, whole
from ldmlab.training.ema import EMA
from ldmlab.training.sharding import prepared
from ldmlab.training.tracking import Tracker

REQUEUE = 85  # exit code: stopped by a signal with a checkpoint; run the same command again


class TrainingLoss(Protocol):
    """How a batch becomes a loss. `players` take turns on each batch; each has one module and one optimiser."""

    players: tuple[str, ...]
    modules: dict[str, nn.Module]

    def loss(self, batch: dict[str, Any], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The player's loss of this batch, and numbers for the log (detached)."""
        ...

    def active(self, player: str, images_seen: int) -> bool:
        """Whether the player takes its turn: each always does, unless a loss says otherwise."""
        return True

    def on_step_end(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """After all turns; `gather` takes [...] to [ranks, ...]. Returns numbers for the log."""
        return {}


class Span(Protocol):
    """How long a training is: images, in steps of `batch_size`."""

    images: int
    batch_size: int


class FitOptions(Span, Protocol):
    """`config.Fit`: what the loop reads of it."""

    lr: float
    clip: float | None
    precision: str
    warmup: int
    cooldown: int
    snapshots: list[float]


class Stopped(Exception):
    """A signal stopped the training; a checkpoint has been written. The command exits with `REQUEUE`."""


@dataclass
class Progressed:
    """Exactly what counts the run; the tensors are in the checkpoint beside it."""

    images: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass
class Events:
    """What happens at times: each is called on all ranks. `validate` returns numbers for the log; `snapshot` keeps weights;
    `health_check` takes a row of the log and the share of the budget that is done, and returns what the user should know."""

    snapshot: Callable[[int], None] = lambda images: None
    validate: Callable[[], dict[str, float]] = dict
    health_check: Callable[[dict[str, float], float], list[str]] = lambda row, share: []
    validate_at: list[float] = field(default_factory=list)  # fractions of the budget
    snapshot_at: list[int] = field(default_factory=list)  # image counts beside those of the budget's snapshots
    checkpoint_seconds: float = 300.0
    log_seconds: float = 10.0


class StopFlag:
    """SIGTERM and SIGUSR1 (and Ctrl-C) set a flag that the loop reads at step borders."""

    def __init__(self) -> None:
        self.caught: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopFlag"]:
        names = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {name: signal.signal(name, self._catch) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _catch(self, number: int, frame: Any) -> None:
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
        self.caught = signal.Signals(number).name


def total_steps(budget: Span) -> int:
    """Optimiser steps of a budget: images / batch, rounded up to whole batches."""
    return math.ceil(budget.images / budget.batch_size)


def images_at(budget: Span, moment: float) -> int:
    """The image count of a moment of the budget, at a step border, from the first one on.

    Up to 1 the moment is a fraction and means the nearest border; above 1 it is a count of images, rounded up to whole
    batches as `budget.images` is.
    """
    if moment > 1:
        return math.ceil(moment / budget.batch_size) * budget.batch_size
    return max(1, round(moment * total_steps(budget))) * budget.batch_size


def cooldown_begins(budget: FitOptions) -> int:
    """Images seen at the last step border up to which the learning rate knows nothing of the cool-down; without one, the end.

    Two budgets that differ in `images`, `cooldown` and `snapshots` alone are one training up to the smaller of these counts.
    """
    end = total_steps(budget) * budget.batch_size
    return max(0, math.ceil((end - budget.cooldown) / budget.batch_size)) * budget.batch_size


def learning_rate(budget: FitOptions, images: int) -> float:
    """Linear warm-up over `warmup` images, constant, linear cool-down over the last `cooldown` images; a function of images
    seen, not of calls."""
    rise = min(1.0, (images + budget.batch_size) / budget.warmup) if budget.warmup else 1.0
    left = total_steps(budget) * budget.batch_size - images
    fall = min(1.0, left / budget.cooldown) if budget.cooldown else 1.0
    return budget.lr * min(rise, fall)


def fit(
    name: str,
    training_loss: TrainingLoss,
    batches: Batches,
    budget: FitOptions,
    optimizers: dict[str, torch.optim.Optimizer],
    averages: dict[str, EMA],
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    tracker: Tracker,
    events: Events,
) -> Progressed:
    """Train `training_loss` up to `budget.images`, from its newest checkpoint when there is one.

    Raises TrainingError on a non-finite loss or gradient (step, term, last good checkpoint), Stopped after a signal.
    """
    raw = dict(training_loss.modules)
    done = _resume(checkpoints, raw, optimizers, averages, accelerator)
    tracker.rewind(done.images)
    training_loss.modules = {player: prepared(module, accelerator) for player, module in raw.items()}
    end = total_steps(budget) * budget.batch_size
    snapshot_at = {images_at(budget, moment) for moment in budget.snapshots} | set(events.snapshot_at)
    validate_at = {images_at(budget, f) for f in events.validate_at}
    clock = _Clock(accelerator, events, done.seconds)
    bar = Progress(name, end, start=done.images, every=events.log_seconds, show=accelerator.is_main_process)
    pending: list[dict[str, Tensor]] = []
    shown: dict[str, float] = {}

    def save() -> None:
        if accelerator.is_main_process or isinstance(checkpoints, ShardedCheckpoints):
            done.seconds = clock.seconds()
            checkpoints.save(
                _tensors(raw, averages), {p: o.state_dict() for p, o in optimizers.items()}, dict(vars(done))
            )
        accelerator.wait_for_everyone()

    def flush() -> dict[str, float]:
        values = _mean(pending, accelerator, name, done, checkpoints)
        values["images_per_second"] = clock.speed(done.images)
        values["lr"] = learning_rate(budget, done.images - budget.batch_size)  # of the step just done
        tracker.log(values, done.images, done.steps, "train", clock.seconds())
        for text in events.health_check(values, done.images / end):
            tracker.warn(text, done.images)
            bar.say(f" warning at {done.images} images: {text}")
        pending.clear()
        return values

    with StopFlag().listening() as stop:
        clock.start(done.images)
        while done.images < end:
            micros = batches.step(done.images)
            # of dropout, which draws from PyTorch's own generator: no step depends on what ran before it in this process
            torch.manual_seed(seed_of(batches.draws.seed, "step", done.images, accelerator.process_index))
            logs = train_step(training_loss, micros, done.images, budget, optimizers, accelerator)
            logs |= training_loss.on_step_end(lambda tensor: accelerator.gather(tensor.unsqueeze(0)))
            done.images += budget.batch_size
            done.steps += 1
            for average in averages.values():
                average.update(done.steps)
            pending.append(logs)

            last = done.images >= end
            event = done.images in snapshot_at or done.images in validate_at or last
            stopping, log_due, save_due = clock.due(stop.caught is not None, done.steps, event)
            if log_due:
                shown = flush()
            if done.images in validate_at:
                tracker.log(events.validate(), done.images, done.steps, "val", clock.seconds())
            if done.images in snapshot_at:
                events.snapshot(done.images)
            if save_due or stopping or last:
                save()
            bar.update(done.images, {k: v for k, v in shown.items() if k in ("loss", "psnr")})
            if stopping and not last:
                bar.close()
                signalled = stop.caught or "a signal on another rank"
                raise Stopped(f"{signalled} at {done.images} images; checkpoint written")
    done.seconds = clock.seconds()
    training_loss.modules = raw
    return done


def train_step(
    training_loss: TrainingLoss,
    micros: list[dict[str, Any]],
    images: int,
    budget: FitOptions,
    optimizers: dict[str, torch.optim.Optimizer],
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One optimiser step of each player that is active after so many images, in order. Returns what they logged."""
    logs: dict[str, Tensor] = {}
    for player in training_loss.players:
        if training_loss.active(player, images):
            logs |= _player_step(training_loss, player, micros, images, budget, optimizers[player], accelerator)
    return logs


def _player_step(
    training_loss: TrainingLoss,
    player: str,
    micros: list[dict[str, Any]],
    images: int,
    budget: FitOptions,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One optimiser step of one player: gradients of the mean loss over all micro-batches and ranks."""
    module = training_loss.modules[player]
    logs: list[dict[str, Tensor]] = []
    for index, micro in enumerate(micros):
        last = index == len(micros) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=budget.precision == "bf16"):
                loss, terms = training_loss.loss(micro, player, images)
            accelerator.backward(loss / len(micros))
        logs.append({**terms, **({"loss": loss.detach()} if "loss" not in terms else {})})
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, budget.clip or math.inf))  # over all ranks' parts
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(budget, images)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    prefix = "" if player == training_loss.players[0] else f"{player}_"
    mean = {f"{prefix}{k}": torch.stack([log[k].float() for log in logs]).mean() for k in logs[0]}
    return {**mean, f"{prefix}gradient_norm": norm.detach()}


class _Clock:
    """When something is due, agreed by all ranks: time and signals are facts of one process, steps are facts of all."""

    def __init__(self, accelerator: Accelerator, events: Events, seconds: float):
        self.accelerator, self.events, self.before = accelerator, events, seconds
        self.agree_every = 1 if accelerator.device.type == "cpu" else 10  # asking a GPU costs a synchronisation

    def start(self, images: int) -> None:
        self.began = self.logged = self.saved = self.marked = time.monotonic()
        self.images = images

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def speed(self, images: int) -> float:
        now = time.monotonic()
        speed = (images - self.images) / max(now - self.marked, 1e-9)
        self.marked, self.images = now, images
        return speed

    def due(self, stop: bool, steps: int, event: bool) -> tuple[bool, bool, bool]:
        """(stop, log, save) at this step border."""
        now = time.monotonic()
        log, save = now - self.logged >= self.events.log_seconds, now - self.saved >= self.events.checkpoint_seconds
        if self.accelerator.num_processes > 1:
            stop_log_save = (False, False, False)
            if steps % self.agree_every == 0 or event:
                flags = torch.tensor([stop, log, save], dtype=torch.float32, device=self.accelerator.device)
                stop_log_save = tuple(bool(x) for x in self.accelerator.reduce(flags, "sum").tolist())  # type: ignore[assignment]
            stop, log, save = stop_log_save
        log = log or save or stop or event  # nothing is saved before its losses were found finite
        if log:
            self.logged = now
        if save:
            self.saved = now
        return stop, log, save


def _tensors(raw: dict[str, nn.Module], averages: dict[str, EMA]) -> dict[str, Tensor]:
    tensors = {f"{player}/{k}": v for player, module in raw.items() for k, v in module.state_dict().items()}
    for player, average in averages.items():
        tensors |= {f"ema.{player}/{name}": t for name, t in zip(average.names, average.shadow, strict=True)}
    return tensors


def _resume(
    checkpoints: Checkpoints,
    raw: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    averages: dict[str, EMA],
    accelerator: Accelerator,
) -> Progressed:
    saved = checkpoints.load(say=accelerator.print, like=_like(raw, optimizers, averages))
    if saved is None:
        return Progressed()
    for player, module in raw.items():
        prefix, own = f"{player}/", module.state_dict()
        mine = {k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)}
        module.load_state_dict({k: placed(v, own.get(k)) for k, v in mine.items()})
    for player, optimizer in optimizers.items():
        weights, state = _weights(optimizer), saved.optimizers[player]["state"]
        split = {
            n: {k: placed(v, weights[n]) if v.shape == weights[n].shape else v for k, v in of.items()}
            for n, of in state.items()
        }
        optimizer.load_state_dict({**optimizer.state_dict(), **saved.optimizers[player], "state": split})
    for player, average in averages.items():
        prefix = f"ema.{player}/"
        average.load({k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)})
    return Progressed(**saved.progress)


def _like(
    raw: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], averages: dict[str, EMA]
) -> dict[str, Tensor]:
    """The sharded tensors that a checkpoint fills, as `shards.read` wants them; empty where nothing is sharded."""
    weights = {
        f"{OPTIMIZER}{player}/{n}": weight
        for player, optimizer in optimizers.items()
        for n, weight in enumerate(_weights(optimizer))
    }
    return {name: tensor for name, tensor in (_tensors(raw, averages) | weights).items() if sharded(tensor)}


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order in which its `state_dict` numbers them."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _mean(
    pending: list[dict[str, Tensor]], accelerator: Accelerator, name: str, done: Progressed, checkpoints: Checkpoints
) -> dict[str, float]:
    """Mean of each logged term over the steps since the last log and over ranks; the finite check is here."""
    values: dict[str, float] = {}
    for key in sorted({k for logs in pending for k in logs}):
        steps = [(done.steps - len(pending) + i + 1, logs[key]) for i, logs in enumerate(pending) if key in logs]
        stacked = torch.stack([value.float() for _, value in steps])
        if accelerator.num_processes > 1:
            stacked = accelerator.reduce(stacked, "mean")
        numbers = stacked.tolist()
        for (step, _), value in zip(steps, numbers, strict=True):
            if not math.isfinite(value):
                last: Path | None = checkpoints.last()
                kept = f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."
                raise TrainingError(
                    f"{name}: '{key}' is {value} at step {step} (images {step * batch_of(done):,}). {kept} "
                    "A smaller lr, fit.clip=1.0 or fit.precision=fp32 are the usual ways out."
                )
        values[key] = sum(numbers) / len(numbers)
    return values


def batch_of(done: Progressed) -> int:
    return done.images // max(done.steps, 1)
