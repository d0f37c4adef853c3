"""Files of denoiser weights: reading those of others without executing anything, and writing ours for others.

Three layouts, recognised by names: the official one (a latent-diffusion checkpoint, or its UNet alone), diffusers' (a
pipeline's folder or its unet/) and our own (a denoiser's folder in the store, or one of its files).
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop import diffusers_dit, diffusers_unet, official_unet, schedules, token_layouts, weights
from ldmlab.interop.class_tables import TABLE, folded
from ldmlab.interop.compvis import FIRST_STAGE, from_ours, some
from ldmlab.interop.official_unet import Average, Copies, UNetLayout

VERSION = 2
"""Of the conversions: grows when the same file would give other weights."""

THEIRS = "diffusion_pytorch_model"
UNUSED = "unused.safetensors"  # beside our own weights
LOGITS = f"conditioner.{token_layouts.OURS}{token_layouts.LOGITS}"
PARTS = ("unet", "transformer")  # folders of a pipeline that hold a denoiser
EMBEDDER = "class_embedder"  # folder beside unet/: the conditioner, for which diffusers has no place
CLASSES = "class_embedding.weight"  # of a UNet2DModel: a class's row is added to the time embedding
BERT = "bert"  # folder beside unet/: the transformer that reads texts or layouts
BERT_NAMES = ("model.safetensors", "pytorch_model.bin")
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
    unused: Mapping[str, Tensor] = MappingProxyType(
        {}
    )  # by our names: what takes part in nothing, and an export gives back


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
        raise WeightsError(
            f"ldm.weights={path}: no such file or folder. Give the path of one, or leave it out to train."
        )
    for folder in (*(path / part for part in PARTS), path):
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    raise WeightsError(f"ldm.weights={path}: the folder holds none of unet/, {', '.join(NAMES)}. Name the file itself.")


def _stamp(path: Path, file: Path) -> tuple[tuple[str, int, int], ...]:
    """What a reading depends on: when any of these files changes, it is read again."""
    folder = file.parent
    beside = [folder / "config.json", folder / "ema.safetensors", folder / UNUSED]
    if _is_pipeline(file):
        beside += [file for part in (EMBEDDER, BERT) for file in (folder.parent / part).glob("*")]
        beside.append(folder.parent / "scheduler" / "scheduler_config.json")
    found = [(f, f.stat()) for f in (file, *sorted(beside)) if f.is_file()]
    return tuple((str(f), state.st_size, state.st_mtime_ns) for f, state in found)


def _is_pipeline(file: Path) -> bool:
    return file.parent.name in PARTS


@functools.lru_cache(maxsize=1)
def _digest(file: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    found, total = _read(file, stamp), hashlib.sha256()
    for name, tensors in (("raw", found.copies.raw), ("ema", found.copies.ema or {}), ("unused", found.unused)):
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
        if diffusers_dit.is_dit(found):
            return _dit(file, found)
        if official_unet.is_official(found):
            return _official(file, found, note)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    if any(name.startswith(("x_embedder.", "transformer_blocks.", "model.x_embedder.")) for name in found):
        raise WeightsError(
            f"{file} holds a DiT in its authors' layout or of another kind. Folders of diffusers' DiTs (transformer/) are read, and of "
            "single files DiTs in our own layout alone."
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

    def beside(name: str) -> dict[str, Tensor] | None:
        there = file.name == NAMES[0] and (file.parent / name).is_file()
        return dict(weights.tensors_in(file.parent / name)[0]) if there else None

    copies = Copies(dict(found), beside("ema.safetensors"))
    return Source(file, "ldmlab", copies, None, None, None, None, unused=beside(UNUSED) or {})


def _official(file: Path, found: Mapping[str, Tensor], note: Mapping[str, Any]) -> Source:
    copies = official_unet.to_ours(found, note.get("averaged_conditioner", {}))
    unused = {name: tensor for name, tensor in copies.raw.items() if name.startswith(LOGITS)}
    raw, ema = (t and {name: tensor for name, tensor in t.items() if name not in unused} for t in copies)
    scale = note.get("scale", found.get("scale_factor"))
    return Source(
        file, "CompVis", Copies(raw or {}, ema), note.get("heads"), note.get("alphas_cumprod", found.get("alphas_cumprod")),
        note.get("target"), scale, official_unet.read_average(found), unused,
    )  # fmt: skip


def _diffusers(file: Path, found: Mapping[str, Tensor]) -> Source:
    config, classes = weights.config_beside(file), {}
    if CLASSES in found and config.get("_class_name") == diffusers_unet.PLAIN:
        classes = {TABLE: found[CLASSES]}
        found = {name: tensor for name, tensor in found.items() if name != CLASSES}
        config = {**config, "num_class_embeds": None}
    official, heads = diffusers_unet.to_official(found, config)
    tensors = {f"network.{name}": tensor for name, tensor in official.items()} | classes
    unused: dict[str, Tensor] = {}
    if _is_pipeline(file):
        conditioner, unused = _bert(file.parent.parent / BERT)
        tensors |= conditioner
        embedder = file.parent.parent / EMBEDDER / f"{THEIRS}.safetensors"
        if embedder.is_file():
            tensors |= {f"conditioner.{name}": tensor for name, tensor in weights.tensors_in(embedder)[0].items()}
    return Source(file, "diffusers", Copies(tensors, None), heads, *_scheduler(file), None, unused=unused)


def _dit(file: Path, found: Mapping[str, Tensor]) -> Source:
    try:
        read = diffusers_dit.to_ours(found, weights.config_beside(file))
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise WeightsError(f"its names and shapes are those of no whole DiT of diffusers ({error}).") from None
    return Source(
        file, "diffusers", Copies(read.tensors, None), read.heads, *_scheduler(file), None, unused=read.unused
    )


def _scheduler(file: Path) -> tuple[Tensor | None, str | None]:
    """alphas_cumprod and target, where a pipeline's folder says them."""
    config = file.parent.parent / "scheduler" / "scheduler_config.json"
    return schedules.read_scheduler(_json(config)) if _is_pipeline(file) and config.is_file() else (None, None)


def _bert(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What reads texts in a pipeline's folder, and its unused head; both empty where there is none."""
    file = next((folder / name for name in BERT_NAMES if (folder / name).is_file()), None)
    if file is None:
        return {}, {}
    found = token_layouts.from_bert(weights.tensors_in(file)[0], weights.config_beside(file))
    ours, unused = ({f"conditioner.{name}": tensor for name, tensor in part.items()} for part in found)
    return ours, unused


def _json(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text())
    except ValueError as error:
        raise WeightsError(f"{file.name} is not JSON ({error}).") from None
    return said if isinstance(said, dict) else {}


# ---- writing -------------------------------------------------------------------------------------------------------------


class ModelFacts(NamedTuple):
    """What a denoiser's tensors do not say and its files should."""

    heads: dict[str, int]
    alpha_bar_T: Tensor  # float64
    target: str | None  # word of `objective.target`; None: a target without a word
    size: int  # height of the latent
    average: Average | None = None  # of the averaged copy; None: not known
    scale_by_std: bool = (
        True  # the latent's scale was measured on data; otherwise it is an option of the official model
    )
    unused: Mapping[str, Tensor] = MappingProxyType({})  # `Source.unused`
    reads_by_first_stage: bool = False  # the condition: `official_unet.is_first_stage_twice`


def as_compvis(
    copies: Copies, facts: ModelFacts, first_stage: Mapping[str, Tensor], groups: list[int]
) -> dict[str, bytes]:
    """`model.ckpt`: a whole latent-diffusion checkpoint, and beside `state_dict` what that has no place for.

    `first_stage`: the autoencoder's state dict, scale and shift included; `groups` of its normalisations.

    Raises WeightsError for a network that the official code does not have.
    """
    conditioner = _conditioner(copies.raw)
    token_layouts.check_official(conditioner)
    own = from_ours(first_stage)
    read_by = own if facts.reads_by_first_stage else token_layouts.with_logits(conditioner, _conditioner(facts.unused))
    official = official_unet.from_ours(copies)
    official |= {official_unet.CONDITIONER + name: tensor for name, tensor in read_by.items()}
    official |= {FIRST_STAGE + name: tensor for name, tensor in own.items()}
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


def as_diffusers(tensors: Mapping[str, Tensor], facts: ModelFacts) -> dict[str, bytes]:
    """`unet/` or `transformer/`, and `class_embedder/`, `bert/` and `scheduler/` where there is such, of one copy of the weights.

    Raises WeightsError for what diffusers cannot express.
    """
    tensors = folded(tensors)
    files = _dit_files(tensors, facts) if "network.x_embedder.proj.weight" in tensors else _unet_files(tensors, facts)
    if facts.target in schedules.PREDICTS:
        files["scheduler/scheduler_config.json"] = _text(schedules.make_scheduler(facts.alpha_bar_T, facts.target))
    return files


def _dit_files(tensors: Mapping[str, Tensor], facts: ModelFacts) -> dict[str, bytes]:
    theirs = diffusers_dit.from_ours(tensors, facts.unused)
    config = diffusers_dit.make_config(tensors, facts.unused, facts.heads["blocks.0.attn"], facts.size)
    return {"transformer/config.json": _text(config), f"transformer/{THEIRS}.safetensors": _tensors(theirs)}


def _unet_files(tensors: Mapping[str, Tensor], facts: ModelFacts) -> dict[str, bytes]:
    unet = {official_unet.unet_name(k): v for k, v in tensors.items() if not k.startswith("conditioner.")}
    layout, conditioner = official_unet.layout_of(unet), _conditioner(tensors)
    if layout is None:
        raise WeightsError("diffusers has no UNet of this structure. Use to=compvis.")
    config = diffusers_unet.make_config(layout, facts.heads, facts.size)
    theirs = diffusers_unet.from_official(unet, layout, facts.heads)
    if TABLE in tensors and layout.context_dim is None:
        config |= {"num_class_embeds": tensors[TABLE].shape[0]}
        theirs |= {CLASSES: tensors[TABLE]}
        conditioner = {}
    files = {"unet/config.json": _text(config), f"unet/{THEIRS}.safetensors": _tensors(theirs)}
    if token_layouts.is_token_transformer(conditioner):
        bert = token_layouts.to_bert(conditioner, _conditioner(facts.unused))
        files[f"{BERT}/config.json"] = _text(token_layouts.make_config(conditioner))
        files[f"{BERT}/{BERT_NAMES[0]}"] = _tensors(bert)
    elif conditioner:
        rows, dim = tensors[TABLE].shape
        files[f"{EMBEDDER}/config.json"] = _text(
            {"_class_name": "Embedding", "num_embeddings": rows, "embedding_dim": dim}
        )
        files[f"{EMBEDDER}/{THEIRS}.safetensors"] = _tensors(conditioner)
    return files


PIPELINE_PARTS = {
    "LDMPipeline": ("unet", "vqvae"), "DDIMPipeline": ("unet", ""), "LDMTextToImagePipeline": ("unet", "vqvae"),
    "DiTPipeline": ("transformer", "vae"),
}  # fmt: skip
"""Folders of a pipeline's denoiser and of its first stage."""


def as_pipeline(
    name: str, denoiser: Mapping[str, bytes], first_stage: Mapping[str, bytes] | None, others: Mapping[str, list[str]]
) -> dict[str, bytes]:
    """A folder that diffusers' pipeline `name` loads whole, of a denoiser's files (`as_diffusers`).

    first_stage: files of `weights.as_diffusers`; None: the denoiser works on pixels. others: of the folders beside, their library
    and class.

    Raises WeightsError when no scheduler was written, for diffusers has none for this target.
    """
    if "scheduler/scheduler_config.json" not in denoiser:
        raise WeightsError(
            "no scheduler of diffusers' DDPM family predicts what this denoiser does (objective.target)."
        )
    files, own, stage = dict(denoiser), *(PIPELINE_PARTS[name])
    parts = {own: f"{own}/config.json", "scheduler": "scheduler/scheduler_config.json"}
    if first_stage is not None:
        files |= {f"{stage}/{file}": content for file, content in first_stage.items()}
        parts[stage] = f"{stage}/config.json"
    classes = {part: ["diffusers", json.loads(files[config])["_class_name"]] for part, config in parts.items()}
    return files | {"model_index.json": _text({"_class_name": name, **classes, **others})}


def _conditioner(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its part, by its own names."""
    return {k.removeprefix("conditioner."): v for k, v in tensors.items() if k.startswith("conditioner.")}


def layout_of(tensors: Mapping[str, Tensor]) -> UNetLayout | None:
    """The UNet behind tensors by our names; None when it is none."""
    inner = {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
    return official_unet.layout_of(inner)


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _tensors(tensors: Mapping[str, Tensor]) -> bytes:
    return save({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
