"""Files of first-stage weights: reading those of others without executing anything, and writing ours for others.

The layout is recognised by the tensors' names, whatever the file is called: the official one (a Lightning checkpoint or
a plain state dict, a first stage alone or inside a latent-diffusion model), diffusers' and our own.
"""

import contextlib
import functools
import io
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop import compvis, diffusers
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import atomic, sha256_file

VERSION = 1
"""Of the conversions: grows when the same file would give other weights."""

NAMES = ("autoencoder.safetensors", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.ckpt")
"""What a folder may hold, in the order in which it is looked for."""

OURS = ("scale", "shift")  # of the latent, in our state dict
NOTE = "ldmlab"  # key of what the official layout has no place for, beside `state_dict` in a file of ours


class Imported(NamedTuple):
    """A first stage as it came."""

    file: Path
    layout: str  # "CompVis", "diffusers" or "ldmlab"
    tensors: dict[str, Tensor]  # by the names of `Autoencoder.state_dict()`, without scale and shift; as stored
    scale: Tensor | None  # z = (raw − shift) · scale; None: the file does not say
    shift: Tensor | None
    groups: list[int] | None  # of the normalisations of the network that was trained; None: as here


def read(path: Path) -> Imported:
    """The first stage in a file or folder. Executes no code that the file may hold.

    Raises WeightsError when there is none, when it is damaged, or when its layout is not known.
    """
    file = weights_file(path)
    state = file.stat()
    return _read(file, state.st_size, state.st_mtime_ns)


def sha256(path: Path) -> str:
    """Of the file that `read` reads; a file that did not change is hashed once a command."""
    file = weights_file(path)
    state = file.stat()
    return _sha256(file, state.st_size, state.st_mtime_ns)


def weights_file(path: Path) -> Path:
    """The file itself, or the one in a folder. Raises WeightsError when there is none."""
    path = path.expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise WeightsError(
            f"ae.weights={path}: no such file or folder. Give the path of one, or leave it out to train."
        )
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    for name in ("vae", "vqvae"):
        if (path / name / "config.json").is_file():
            raise WeightsError(f"ae.weights={path} is a whole pipeline. Its first stage is ae.weights={path / name}.")
    raise WeightsError(f"ae.weights={path}: the folder holds none of {', '.join(NAMES)}. Name the file itself.")


def tensors_in(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The tensors of a safetensors or torch.save file by name, and our note in it; empty in a file of others.

    Raises WeightsError for a damaged file and for one that could not be read without executing code.
    """
    return (load_tensors(file), {}) if _is_safetensors(file) else _unpickle(file)


def misfit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """How the tensors of a file differ from a network's in names and shapes, in one sentence; None: not at all."""
    missing, strange = [k for k in expected if k not in found], [k for k in found if k not in expected]
    other = [k for k in expected if k in found and found[k].shape != expected[k].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of the {len(expected)} tensors are missing ({compvis.some(missing)})")
    if strange:
        parts.append(f"{len(strange)} belong to another network ({compvis.some(strange)})")
    if other:
        shapes = [f"{k} is {_say(found[k])} in the file and {_say(expected[k])} here" for k in other]
        parts.append(
            f"{len(other)} {'has another shape' if len(other) == 1 else 'have other shapes'} ({compvis.some(shapes, 2)})"
        )
    return "; ".join(parts) or None


def _say(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


@functools.lru_cache(maxsize=4)
def _sha256(file: Path, size: int, changed: int) -> str:
    return sha256_file(file)


@functools.lru_cache(maxsize=1)
def _read(file: Path, size: int, changed: int) -> Imported:
    found, note = tensors_in(file)
    if any(name.startswith("network.") for name in found):
        tensors = {k: v for k, v in found.items() if k not in OURS}
        return Imported(file, "ldmlab", tensors, found.get("scale"), found.get("shift"), None)
    try:
        if diffusers.is_diffusers(found):
            facts = diffusers.read_config(config_beside(file))
            ours = compvis.to_ours(diffusers.to_official(found))
            return Imported(file, "diffusers", ours, facts.scale, facts.shift, [facts.groups])
        first_stage = compvis.first_stage(found)
        if compvis.is_official(first_stage):
            scale = note.get("scale", found.get("scale_factor"))
            groups = note.get("groups", [compvis.GROUPS])
            return Imported(file, "CompVis", compvis.to_ours(first_stage), scale, note.get("shift"), groups)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    raise WeightsError(
        f"{file} holds no first stage in a layout that is known: CompVis (encoder.down.0…), diffusers "
        f"(encoder.down_blocks.0…) or ldmlab (network.…). Its names: {compvis.some(list(found)) or 'none'}."
    )


def config_beside(file: Path) -> dict[str, Any]:
    """config.json in the same folder; empty when there is none, as with a file that came alone."""
    config = file.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        said = json.loads(config.read_text())
    except ValueError as error:
        raise WeightsError(f"{config.name} beside it is not JSON ({error}).") from None
    return said if isinstance(said, dict) else {}


# ---- pickles -------------------------------------------------------------------------------------------------------------


class _Nothing:
    """Stands for every class and function that a checkpoint names and PyTorch does not trust: an empty dict in its place."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def _is_safetensors(file: Path) -> bool:
    """By content: eight bytes of length, then a JSON object."""
    try:
        with file.open("rb") as opened:
            head = opened.read(9)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}.") from None
    return len(head) == 9 and head[8:] == b"{" and not _is_zip(file)


def _is_zip(file: Path) -> bool:
    """Whether it ends as a zip does; Python's own test raises for some damaged ones."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return True


def _unpickle(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The tensors of a torch.save file, and our note in it. PyTorch's restricted unpickler calls nothing but its own
    tensor constructors; Lightning's callbacks and options, which it would refuse, become empty dicts."""
    try:
        whole = _is_zip(file)
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings(action="ignore"))  # of a pickle protocol it may not know
            if whole:
                unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
                stack.enter_context(torch.serialization.safe_globals([(_Nothing, name) for name in unknown]))
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=whole)
    except (
        pickle.UnpicklingError,
        SafetensorError,  # PyTorch goes by the suffix of a file
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        EOFError,
    ) as error:
        told = " ".join(str(error).split())  # PyTorch's own, without its advice to trust the file
        reason = (told.partition("WeightsUnpickler error: ")[2] or told).partition(" Check the documentation")[0][:160]
        raise WeightsError(
            f"{file} is neither safetensors nor a whole torch.save file that can be read without executing code, which is "
            f"never done ({reason}). If you trust it, load it elsewhere and save the tensors alone: "
            "safetensors.torch.save_file(checkpoint['state_dict'], 'weights.safetensors')."
        ) from None
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = (
        {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(inner, dict)
        else {}
    )
    note = loaded.get(NOTE) if isinstance(loaded, dict) else None
    ours = isinstance(note, dict) and "groups" in note and all(isinstance(note.get(k), Tensor) for k in OURS)
    return tensors, note if ours and note else {}


# ---- writing -------------------------------------------------------------------------------------------------------------


def as_compvis(ours: Mapping[str, Tensor], groups: list[int]) -> dict[str, bytes]:
    """`model.ckpt`: the official names under `state_dict`, and beside it what they have no place for."""
    note = {"scale": ours["scale"], "shift": ours["shift"], "groups": groups}
    return {"model.ckpt": checkpoint(compvis.from_ours(ours), note)}


def checkpoint(official: Mapping[str, Tensor], note: dict[str, Any]) -> bytes:
    """A torch.save file of `state_dict` and, beside it, our note."""
    buffer = io.BytesIO()  # a file's name would become part of the bytes
    torch.save({"state_dict": {k: v.contiguous() for k, v in official.items()}, NOTE: note}, buffer)
    return buffer.getvalue()


def as_diffusers(ours: Mapping[str, Tensor], groups: list[int], resolution: int) -> dict[str, bytes]:
    """`config.json` and `diffusion_pytorch_model.safetensors`, as `from_pretrained` reads them.

    Raises WeightsError for what diffusers cannot express.
    """
    official = compvis.from_ours(ours)
    layout = compvis.layout_of(official)
    known = {"quantize.embedding.weight"} if layout and layout.moments == layout.c else set()
    if layout is None or {k for k in official if k.startswith(compvis.CODEBOOK)} != known:
        raise WeightsError("diffusers has AutoencoderKL and VQModel; this first stage is neither. Use to=compvis.")
    config = diffusers.make_config(layout, groups, resolution, ours["scale"].flatten(), ours["shift"].flatten())
    tensors = {k: v.contiguous() for k, v in diffusers.from_official(official).items()}
    return {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "diffusion_pytorch_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }


def write(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder; one that is there already and equal stays. Raises WeightsError, before anything is
    written, when one is there and differs."""
    for name, content in files.items():
        if (folder / name).exists() and (folder / name).read_bytes() != content:
            raise WeightsError(
                f"{folder / name} exists and is something else; nothing is overwritten. Give another out=…"
            )
    for name, content in files.items():
        if not (folder / name).exists():
            with atomic(folder / name) as beside:
                beside.write_bytes(content)
    return [folder / name for name in files]
