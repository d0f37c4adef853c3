"""Files of denoiser weights: reading those of others without executing anything, and writing ours for others.

Three layouts, recognised by names: the official one (a latent-diffusion checkpoint, or its UNet alone), diffusers' (a
pipeline's folder or its unet/) and our own (a denoiser's folder in the store, or one of its files).
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop import diffusers_unet, official_unet, schedules, weights
from ldmlab.interop.compvis import FIRST_STAGE, from_ours, some
from ldmlab.interop.official_unet import Average, Copies, UNetLayout

VERSION = 2
"""Of the conversions: grows when the same file would give other weights."""

THEIRS = "diffusion_pytorch_model"
EMBEDDER = "class_embedder"  # folder beside unet/: the conditioner, for which diffusers has no place
NAMES = ("weights.safetensors", f"{THEIRS}.safetensors", f"{THEIRS}.bin", "model.ckpt")
"""What a folder may hold, in the order in which it is looked for."""


class Source(NamedTuple):
    """A denoiser as it came."""

    file: Path
    layout: str  # "CompVis", "diffusers" or "ldmlab"
    copies: Copies  # by the names of `Denoiser.state_dict()`; as stored
    heads: dict[str, int] | None  # of each attention, by its name in the network; None: the file does not say
    alpha_bar_T: Tensor | None  # alphas_cumprod it was trained with; None: the file does not say
    target: str | None  # word of `objective.target`
    scale: Tensor | None  # of the latents it was trained on
    average: Average | None = None  # how the averaged copy was made; None: the file does not say


def read(path: Path) -> Source:
    """The denoiser in a file or folder. Executes no code that the file may hold.

    Raises WeightsError when there is none, when it is damaged, or when its layout is not known.
    """
    file = weights_file(path)
    return _read(file, _stamp(path, file))


def digest(path: Path) -> str:
    """sha256 of the denoiser's tensors, whatever else is in the file: names, types, shapes, contents."""
    file = weights_file(path)
    return _digest(file, _stamp(path, file))


def weights_file(path: Path) -> Path:
    """The file itself, or the one in a folder. Raises WeightsError when there is none."""
    path = path.expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise WeightsError(f"ldm.weights={path}: no such file or folder.")
    for folder in (path / "unet", path):
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    raise WeightsError(f"ldm.weights={path}: the folder holds none of unet/, {', '.join(NAMES)}. Name the file itself.")


def _stamp(path: Path, file: Path) -> tuple[tuple[str, int, int], ...]:
    """What a reading depends on: when any of these files changes, it is read again."""
    folder = file.parent
    beside = [folder / "config.json", folder / "ema.safetensors"]
    if _is_pipeline(file):
        beside += [*(folder.parent / EMBEDDER).glob("*"), folder.parent / "scheduler" / "scheduler_config.json"]
    found = [(f, f.stat()) for f in (file, *sorted(beside)) if f.is_file()]
    return tuple((str(f), state.st_size, state.st_mtime_ns) for f, state in found)


def _is_pipeline(file: Path) -> bool:
    return file.parent.name == "unet"


@functools.lru_cache(maxsize=1)
def _digest(file: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    copies, total = _read(file, stamp).copies, hashlib.sha256()
    for name, tensors in (("raw", copies.raw), ("ema", copies.ema or {})):
        for key, tensor in sorted(tensors.items()):
            total.update(f"{name} {key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


@functools.lru_cache(maxsize=1)
def _read(file: Path, stamp: tuple[tuple[str, int, int], ...]) -> Source:
    found, note = weights.tensors_in(file)
    try:
        if any(name.startswith("network.") for name in found):
            return _ours(file, found)
        if diffusers_unet.is_diffusers(found):
            return _diffusers(file, found)
        if official_unet.is_official(found):
            return _official(file, found, note)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    if any(name.startswith(("x_embedder.", "transformer_blocks.", "model.x_embedder.")) for name in found):
        raise WeightsError(
            f"{file} holds a DiT in its authors' or diffusers' layout. UNets are read in those, DiTs in our own layout alone."
        )
    hint = (
        " It is a first stage: give it as ae.weights."
        if any(k.startswith(("encoder.", "decoder.")) for k in found)
        else ""
    )
    raise WeightsError(
        f"{file} holds no denoiser in a layout that is known: CompVis (model.diffusion_model.input_blocks.0…), diffusers "
        f"(down_blocks.0…) or ldmlab (network.…). Its names: {some(list(found)) or 'none'}.{hint}"
    )


def _ours(file: Path, found: Mapping[str, Tensor]) -> Source:
    """`weights.safetensors` of the store with `ema.safetensors` beside it; any other single file is one copy."""
    if any(name.startswith(("network.encoder.", "network.decoder.")) for name in found):
        raise WeightsError("it is a first stage of ours. Give it as ae.weights.")
    beside = file.parent / "ema.safetensors"
    averaged = dict(weights.tensors_in(beside)[0]) if file.name == NAMES[0] and beside.is_file() else None
    return Source(file, "ldmlab", Copies(dict(found), averaged), None, None, None, None)


def _official(file: Path, found: Mapping[str, Tensor], note: Mapping[str, Any]) -> Source:
    copies = official_unet.to_ours(found, note.get("averaged_conditioner", {}))
    scale = note.get("scale", found.get("scale_factor"))
    return Source(
        file, "CompVis", copies, note.get("heads"), note.get("alphas_cumprod", found.get("alphas_cumprod")),
        note.get("target"), scale, official_unet.read_average(found),
    )  # fmt: skip


def _diffusers(file: Path, found: Mapping[str, Tensor]) -> Source:
    official, heads = diffusers_unet.to_official(found, weights.config_beside(file))
    tensors = {f"network.{name}": tensor for name, tensor in official.items()}
    alpha_bar_T, target = None, None
    if _is_pipeline(file):
        embedder = file.parent.parent / EMBEDDER / f"{THEIRS}.safetensors"
        if embedder.is_file():
            tensors |= {f"conditioner.{name}": tensor for name, tensor in weights.tensors_in(embedder)[0].items()}
        scheduler = file.parent.parent / "scheduler" / "scheduler_config.json"
        if scheduler.is_file():
            alpha_bar_T, target = schedules.read_scheduler(_json(scheduler))
    return Source(file, "diffusers", Copies(tensors, None), heads, alpha_bar_T, target, None)


def _json(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text())
    except ValueError as error:
        raise WeightsError(f"{file.name} is not JSON ({error}).") from None
    return said if isinstance(said, dict) else {}


# ---- writing -------------------------------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What a denoiser's tensors do not say and its files should."""

    heads: dict[str, int]
    alpha_bar_T: Tensor  # float64
    target: str | None  # word of `objective.target`; None: a target without a word
    size: int  # height of the latent
    average: Average | None = None  # of the averaged copy; None: not known
    scale_by_std: bool = (
        True  # the latent's scale was measured on data; otherwise it is an option of the official model
    )


def as_compvis(copies: Copies, facts: Facts, first_stage: Mapping[str, Tensor], groups: list[int]) -> dict[str, bytes]:
    """`model.ckpt`: a whole latent-diffusion checkpoint, and beside `state_dict` what that has no place for.

    `first_stage`: the autoencoder's state dict, scale and shift included; `groups` of its normalisations.

    Raises WeightsError for a network that the official code does not have.
    """
    official = official_unet.from_ours(copies)
    official |= {FIRST_STAGE + name: tensor for name, tensor in from_ours(first_stage).items()}
    official |= schedules.official_buffers(facts.alpha_bar_T)
    scale = first_stage["scale"].flatten()
    if facts.scale_by_std and (scale == scale[0]).all():
        official["scale_factor"] = scale[0].clone()
    if copies.ema is not None and facts.average is not None:
        official |= official_unet.average_buffers(facts.average)
    averaged = {k: v.contiguous() for k, v in (copies.ema or {}).items() if k.startswith("conditioner.")}
    note = {
        "scale": first_stage["scale"], "shift": first_stage["shift"], "groups": groups, "heads": dict(facts.heads),
        "alphas_cumprod": facts.alpha_bar_T, "averaged_conditioner": averaged, "target": facts.target,
    }  # fmt: skip
    return {"model.ckpt": weights.checkpoint(official, note)}


def as_diffusers(tensors: Mapping[str, Tensor], facts: Facts) -> dict[str, bytes]:
    """`unet/`, and `class_embedder/` and `scheduler/` where there is such, of one copy of the weights.

    Raises WeightsError for what diffusers cannot express.
    """
    unet = {official_unet.unet_name(k): v for k, v in tensors.items() if not k.startswith("conditioner.")}
    layout = official_unet.layout_of(unet)
    if layout is None:
        raise WeightsError("diffusers has no UNet of this structure. Use to=compvis.")
    files = {
        "unet/config.json": _text(diffusers_unet.make_config(layout, facts.heads, facts.size)),
        f"unet/{THEIRS}.safetensors": _tensors(diffusers_unet.from_official(unet, layout, facts.heads)),
    }
    conditioner = {k.removeprefix("conditioner."): v for k, v in tensors.items() if k.startswith("conditioner.")}
    if conditioner:
        rows, dim = next(iter(conditioner.values())).shape
        files[f"{EMBEDDER}/config.json"] = _text(
            {"_class_name": "Embedding", "num_embeddings": rows, "embedding_dim": dim}
        )
        files[f"{EMBEDDER}/{THEIRS}.safetensors"] = _tensors(conditioner)
    if facts.target in schedules.PREDICTS:
        files["scheduler/scheduler_config.json"] = _text(schedules.make_scheduler(facts.alpha_bar_T, facts.target))
    return files


def as_pipeline(
    denoiser: Mapping[str, bytes], first_stage: Mapping[str, bytes] | None, target: str | None
) -> dict[str, bytes]:
    """A folder that diffusers loads whole, of an unconditional denoiser's files (`as_diffusers`).

    first_stage: files of `weights.as_diffusers`; None: the denoiser works on pixels (diffusers' DDIMPipeline).

    Raises WeightsError when no scheduler was written, for diffusers has none for this target.
    """
    if "scheduler/scheduler_config.json" not in denoiser:
        raise WeightsError(f"no scheduler of diffusers' DDPM family predicts {target or 'this target'}.")
    parts = {"unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json"}
    files = dict(denoiser)
    if first_stage is not None:
        files |= {f"vqvae/{name}": content for name, content in first_stage.items()}
        parts["vqvae"] = "vqvae/config.json"
    classes = {name: ["diffusers", json.loads(files[config])["_class_name"]] for name, config in parts.items()}
    index = {"_class_name": "DDIMPipeline" if first_stage is None else "LDMPipeline", **classes}
    return files | {"model_index.json": _text(index)}


def layout_of(tensors: Mapping[str, Tensor]) -> UNetLayout | None:
    """The UNet behind tensors by our names; None when it is none."""
    inner = {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
    return official_unet.layout_of(inner)


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _tensors(tensors: Mapping[str, Tensor]) -> bytes:
    return save({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
