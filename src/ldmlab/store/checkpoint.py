"""Checkpoints: everything that must survive a restart, two generations of it, each whole or not there at all.

Randomness is addressed by position (`randomness.py`), so there is no generator state to keep.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldmlab.errors import DataError, WeightsError
from ldmlab.store import shards
from ldmlab.store.files import read_json, sha256_file, write_json, writing
from ldmlab.store.ranks import Ranks
from ldmlab.store.store import canonical

KEEP = 2
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Saved(NamedTuple):
    """What comes back: tensors by name, the optimisers' states and the progress (`images`, `steps`, `seconds`)."""

    tensors: dict[str, Tensor]
    optimizers: dict[str, Any]
    progress: dict[str, Any]


def save_tensors(path: Path, tensors: dict[str, Tensor], note: str | None = None) -> None:
    """A safetensors file on the CPU. One metadata key at most: with more the bytes differ between saves."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"ldmlab": note} if note else None)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises WeightsError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing. Run the same command again; it builds what is not there.") from None
    except Exception as error:  # safetensors raises its own type for each kind of damage
        raise WeightsError(f"{path} is damaged ({error}).") from None


def _digest(sealed: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(sealed).encode()).hexdigest()


def _unsealed(file: Path) -> dict[str, Any]:
    """What `progress.json` says. Raises DataError when it is not what was written: a flipped digit is valid JSON too."""
    found = read_json(file)
    if not isinstance(found, dict) or found.pop("sha256", None) != _digest(found):
        raise DataError(f"{file} is not what was written.")
    return found


class Checkpoints:
    """The folder `checkpoints/` of a stage that trains."""

    def __init__(self, folder: Path):
        self.folder = folder / "checkpoints"

    def save(self, tensors: dict[str, Tensor], optimizers: dict[str, Any], progress: dict[str, Any]) -> Path:
        """Write one generation beside its place, rename it, then forget all but the newest two.

        Raises DataError when the disk is full or the folder cannot be written.
        """
        with writing(self.folder):
            return self._save(tensors, optimizers, progress)

    def _save(self, tensors: dict[str, Tensor], optimizers: dict[str, Any], progress: dict[str, Any]) -> Path:
        self.sweep()
        beside = Path(tempfile.mkdtemp(dir=self.folder, prefix=".writing-"))
        save_tensors(beside / "state.safetensors", tensors)
        with (beside / "optimizers.pt").open("wb") as file:  # a file of Python's: its errors say what the disk said
            torch.save(optimizers, file)
        files = {name: sha256_file(beside / name) for name in ("state.safetensors", "optimizers.pt")}
        return self.sealed(beside, progress, files)

    def sweep(self) -> None:
        """Make the folder, and remove what a process left that was killed while it wrote."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for rest in self.folder.glob(".writing-*"):
            shutil.rmtree(rest, ignore_errors=True)

    def sealed(self, beside: Path, progress: dict[str, Any], files: dict[str, str]) -> Path:
        """The written folder as the newest generation; `files`: the sha256 of each."""
        sealed = {**progress, "files": files}
        write_json(beside / "progress.json", {**sealed, "sha256": _digest(sealed)})
        target = self.folder / f"{progress['images']:012d}"
        if target.exists():
            shutil.rmtree(target)
        beside.chmod(0o755)
        beside.rename(target)
        for old in self.generations()[:-KEEP]:
            shutil.rmtree(old)
        return target

    def generations(self) -> list[Path]:
        """Whole generations, oldest first."""
        return sorted(p for p in self.folder.glob("[0-9]*") if p.is_dir()) if self.folder.exists() else []

    def load(self, say: Any = print, like: Mapping[str, Tensor] = NOTHING) -> Saved | None:
        """The newest generation whose files are what they were; a damaged one is named and the one before is used.

        It may have been written by one process or by several (`store.shards`), whatever reads it. like: as of `shards.read`.

        Raises DataError when generations exist and none is whole.
        """
        found = self.generations()
        for folder in reversed(found):
            try:
                progress = _unsealed(folder / "progress.json")
                self.check(folder, progress.pop("files"))
                if shards.are_in(folder):
                    return Saved(*shards.read(folder, like), progress)
                tensors = load_tensors(folder / "state.safetensors")
                optimizers = torch.load(folder / "optimizers.pt", weights_only=True, map_location="cpu")
                return Saved(tensors, optimizers, progress)
            except (DataError, WeightsError, KeyError) as error:
                say(f"checkpoint {folder} is damaged ({error}); trying the one before")
        if found:
            raise DataError(
                f"none of the {len(found)} checkpoints in {self.folder} is whole. Remove that folder to train from the beginning."
            )
        return None

    def check(self, folder: Path, files: dict[str, str]) -> None:
        """DataError unless each of the `files` of a generation has this sha256."""
        for name, digest in files.items():
            if not (folder / name).exists() or sha256_file(folder / name) != digest:
                raise DataError(f"{folder / name} is missing or not what was written.")

    def last(self) -> Path | None:
        found = self.generations()
        return found[-1] if found else None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class ShardedCheckpoints(Checkpoints):
    """The same folder for a training that is sharded: `save` and `load` are called on all ranks, and each writes its own parts.

    All ranks see the folder, so it is on one machine or on a shared file system.
    """

    def __init__(self, folder: Path, ranks: Ranks):
        super().__init__(folder)
        self.ranks = ranks

    def _save(self, tensors: dict[str, Tensor], optimizers: dict[str, Any], progress: dict[str, Any]) -> Path:
        beside = self.folder / f".writing-{progress['images']:012d}"
        if self.ranks.main:
            self.sweep()
            beside.mkdir()
        self.ranks.barrier()
        shards.write(beside, tensors, optimizers)
        mine = [*beside.glob(f"__{self.ranks.rank}_*.distcp"), *([beside / shards.INDEX] if self.ranks.main else [])]
        parts = self._told({path.name: sha256_file(path) for path in mine})
        target = beside
        if self.ranks.main:
            target = self.sealed(beside, progress, {name: digest for part in parts for name, digest in part.items()})
        self.ranks.barrier()
        return target

    def check(self, folder: Path, files: dict[str, str]) -> None:
        """Each rank reads its share of the files; all raise what one of them finds."""
        mine, found = sorted(files)[self.ranks.rank :: self.ranks.count], None
        try:
            super().check(folder, {name: files[name] for name in mine})
        except DataError as error:
            found = str(error)
        for problem in self._told(found):
            if problem is not None:
                raise DataError(problem)

    def _told(self, mine: Any) -> list[Any]:
        """What every rank says, on all ranks."""
        told: list[Any] = [None] * self.ranks.count
        torch.distributed.all_gather_object(told, mine)
        return told
