"""What a training leaves at a point of it: weights and averages, and the optimisers' state, from which it can go on.

Files at a point: weights, ema, power_<width> and the other players' weights as .safetensors; optimizers.pt where the state is kept.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ldmlab.store.checkpoint import Checkpoints, load_tensors, save_tensors
from ldmlab.store.files import atomic, write_json
from ldmlab.training.dtensors import gathered
from ldmlab.training.ema import EMA

STATE = "optimizers.pt"
LOGS = ("metrics.jsonl", "warnings.jsonl")


def snapshot_folder(folder: Path, images: int) -> Path:
    """Of a stage's snapshot after so many images."""
    return folder / "snapshots" / f"{images:012d}"


@dataclass(frozen=True)
class Start:
    """A kept point that another training goes on from.

    place: its files, the state among them. images: seen there. snapshots: earlier points that the new training keeps too, by
    their image counts. log: the folder whose log it goes on writing; None: it begins its own. origin: what the new stage
    records of where it comes from.
    """

    place: Path
    images: int
    snapshots: dict[int, Path] = field(default_factory=dict)
    log: Path | None = None
    origin: dict[str, str | int] = field(default_factory=dict)


@dataclass
class Kept:
    """The networks of a training with their averages and optimisers: written at a point, and taken over from one.

    The first of `modules` is the one that is averaged; `averages` holds its EMA under its own name, others under theirs.
    """

    modules: dict[str, nn.Module]
    averages: dict[str, EMA]
    optimizers: dict[str, torch.optim.Optimizer]

    @property
    def files(self) -> dict[str, str]:
        """Prefix of the tensors in a checkpoint → the file that holds them here."""
        first = next(iter(self.modules))
        players = {f"{player}/": "weights" if player == first else player for player in self.modules}
        averages = {f"ema.{name}/": "ema" if name == first else name for name in self.averages}
        return {prefix: f"{name}.safetensors" for prefix, name in (players | averages).items()}

    def write(self, where: Path, state: bool, main: bool = True) -> None:
        """All files of the point; with `state` the optimisers' too. On all ranks: sharded tensors are gathered, `main` writes."""
        parts: list[nn.Module | EMA] = [*self.modules.values(), *self.averages.values()]
        for name, part in zip(self.files.values(), parts, strict=True):
            tensors = gathered(part.state_dict(), main)
            if main:
                with atomic(where / name) as beside:
                    save_tensors(beside, tensors)
        if state:
            states = gathered({player: optimizer.state_dict() for player, optimizer in self.optimizers.items()}, main)
            if main:
                with atomic(where / STATE) as beside, beside.open("wb") as file:
                    torch.save(states, file)

    def begin(self, start: Start, folder: Path, batch_size: int, state: bool) -> None:
        """Make `folder` that of a training stopped at `start`: its snapshots, its log and, last of all, a checkpoint.

        A kill on the way leaves no checkpoint, and the next attempt begins again. state: the snapshots' is taken over too.
        """
        names = [*self.files.values(), *([STATE] if state else [])]
        for images, place in start.snapshots.items():
            for name in names:
                with atomic(snapshot_folder(folder, images) / name) as beside:
                    shutil.copyfile(place / name, beside)
        for log in (start.log / name for name in LOGS) if start.log else ():
            if log.is_file():
                with atomic(folder / log.name) as beside:
                    shutil.copyfile(log, beside)
        if start.origin:
            write_json(folder / "continued.json", start.origin)
        tensors: dict[str, Tensor] = {}
        for prefix, name in self.files.items():
            tensors |= {f"{prefix}{key}": tensor for key, tensor in load_tensors(start.place / name).items()}
        optimizers = torch.load(start.place / STATE, weights_only=True, map_location="cpu")
        seconds = 0.0 if start.log is None else _seconds(start.log / "metrics.jsonl", start.images)
        progress = {"images": start.images, "steps": start.images // batch_size, "seconds": seconds}
        Checkpoints(folder).save(tensors, optimizers, progress)


def _seconds(log: Path, images: int) -> float:
    """Training time up to so many images, from the log's rows."""
    rows = map(json.loads, log.read_text().splitlines())
    return max((row["time"] for row in rows if row["images"] <= images), default=0.0)
