"""Exports stages of the store in the formats of other packages: a first stage (part=ae), or a denoiser with what it needs (part=ldm).

to=compvis: one model.ckpt by the official names; of a denoiser the whole latent diffusion model, first stage included, which
loads strictly into the official class and goes on training there, and from which `ae.weights` and `ldm.weights` both read.
to=diffusers: a first stage as config.json and weights; a denoiser as a folder with unet/ or transformer/, scheduler/ and what reads its
condition, a whole pipeline where diffusers has one that computes the same.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.conditioning import outside, tokenizer
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.frozen_text import FrozenText
from ldmlab.conditioning.inpaint import Inpaint
from ldmlab.conditioning.layout import Layout
from ldmlab.conditioning.spatial_rescaler import SpatialRescaler
from ldmlab.conditioning.text import Text
from ldmlab.config.compose import Composed
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import UserError, WeightsError
from ldmlab.interop import compvis, denoisers, diffusers_dit, official_unet, weights
from ldmlab.interop.official_unet import Copies
from ldmlab.networks.blocks import OFFICIAL
from ldmlab.networks.dit import DiT
from ldmlab.networks.unet import UNet
from ldmlab.pipeline import weights_denoiser, weights_first_stage
from ldmlab.pipeline.decoder import decoding_address
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.export_diffusers import diffusers_folder
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.tokenizer import TokenizerStage
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.store import Address, Store


class Written(NamedTuple):
    """What an export leaves behind."""

    files: list[Path]
    notes: list[str]  # what the format does not say


def export_first_stage(composed: Composed, to: str, out: Path, command: str) -> Written:
    """Write the first stage of a composition into the folder `out`.

    Raises UserError when the stage is not in the store, WeightsError when the format cannot express it or another file
    is in the way.
    """
    plan = prepare(composed)
    store, resolved, stage = plan.store, plan.resolved, decoding_address(plan)
    _check_done(store, [stage], command, "autoencoder")
    tensors = load_tensors(store.check(stage, "autoencoder.safetensors"))
    if not weights_first_stage.tensors_of(resolved.autoencoder):
        raise UserError(f"ae={composed.choices['ae']} has no weights to export.")
    if not isinstance(resolved.autoencoder.network, ConvNetwork):
        raise WeightsError(
            f"ae={composed.choices['ae']} is a {type(resolved.autoencoder.network).__name__}, and the {to} format knows the "
            f"paper's convolutional first stages alone. Its weights are kept in our own layout: "
            f"{store.folder(stage) / 'autoencoder.safetensors'}; ae.weights=<that file> reads it."
        )
    groups = weights_first_stage.groups_of(resolved.autoencoder)
    if to == "diffusers":
        several = len(set(tensors["scale"].flatten().tolist())) > 1
        said = "a scale per channel is latents_mean and latents_std in config.json; not every pipeline reads them"
        return Written(weights.write(out, weights.as_diffusers(tensors, groups, resolved.resolution)), [said] * several)
    notes = [f"the latent's scale is {_numbers(tensors['scale'])}, its shift {_numbers(tensors['shift'])}: scale_factor of "
             "the official diffusion, which knows one number and no shift"]  # fmt: skip
    return Written(weights.write(out, weights.as_compvis(tensors, groups)), notes + _group_notes(groups))


def export_denoiser(composed: Composed, to: str, out: Path, command: str) -> Written:
    """Write the denoiser of a composition, with what it needs, into the folder `out`.

    Raises UserError when the denoiser is not in the store, or of a kind that others have no layout for, WeightsError when the
    format cannot express it or another file is in the way.
    """
    cfg = composed.cfg
    plan = prepare(composed)
    store, resolved, trained = plan.store, plan.resolved, plan.stage(DenoiserStage).address
    if cfg.eval.ema_width is not None:
        raise UserError("eval.ema_width is made when it is sampled and is no file to export. Use eval.ema_width=null.")
    _check_kind(resolved.denoiser, to)
    stage = decoding_address(plan)
    _check_done(store, [stage, trained], command, "denoiser")
    first_stage = load_tensors(store.check(stage, "autoencoder.safetensors"))
    facts = denoisers.ModelFacts(
        heads=weights_denoiser.heads_of(resolved.denoiser.network),
        alpha_bar_T=resolved.objective.schedule.alpha_bar_T,
        target=weights_denoiser.target_of(cfg),
        size=resolved.latent_shape[1],
        average=weights_denoiser.average_of(cfg, store.folder(trained)),
        scale_by_std=weights_first_stage.scale_by_std(cfg),
        unused=_where_there(store, trained, denoisers.UNUSED) or {},
        reads_by_first_stage=isinstance(resolved.conditioner, Inpaint),
    )
    raw = load_tensors(store.check(trained, "weights.safetensors"))
    copies = Copies(raw, _where_there(store, trained, "ema.safetensors"))
    beside = _tokenizer_files(plan)
    if to == "diffusers":
        chosen = copies.ema if cfg.eval.weights == "ema" else copies.raw
        assert chosen is not None  # prepare has refused eval.weights=ema without one
        files, notes = diffusers_folder(chosen, facts, resolved, first_stage, beside)
        return Written(weights.write(out, files), [f"the weights are eval.weights={cfg.eval.weights}", *notes])
    groups = weights_first_stage.groups_of(resolved.autoencoder)
    files = denoisers.as_compvis(copies, facts, first_stage, groups) | beside
    return Written(weights.write(out, files), _official_notes(cfg, copies, facts, first_stage, groups))


def _check_done(store: Store, stages: list[Address], command: str, until: str) -> None:
    for address in stages:
        if store.done(address) is None:
            again = " ".join(w for w in command.split() if not w.startswith(("to=", "out=", "until=", "part=")))
            raise UserError(
                f"the {address.stage} {address.id} is not in the store. "
                f"Make it first: {again.replace('export.py', 'train.py')} until={until}"
            )


def _where_there(store: Store, trained: Address, name: str) -> dict[str, Tensor] | None:
    """A file of the denoiser, as it lies in the store; None where it has no such file."""
    return load_tensors(store.check(trained, name)) if (store.folder(trained) / name).is_file() else None


def _check_kind(model: Denoiser, to: str) -> None:
    network, conditioner = model.network, model.conditioner
    if isinstance(network, DiT):
        _check_dit(network, to)
    elif not isinstance(network, UNet):
        raise UserError(
            f"ldm.network is a {type(network).__name__}; UNets and DiTs alone can be written for others. Its own files in the store "
            "(weights.safetensors, ema.safetensors) are plain safetensors, and ldm.weights reads them."
        )
    else:
        _check_unet(network, to)
    learned = any(name.startswith("conditioner.") for name, _ in model.named_parameters())
    if learned and not isinstance(conditioner, LEARNED[to]):
        raise UserError(
            f"cond.conditioner is a {type(conditioner).__name__} with weights; to={to} has a place for those of "
            f"{', '.join(kind.__name__ for kind in LEARNED[to])} alone, one at a time."
        )
    if isinstance(conditioner, (Text, FrozenText)) and conditioner.mask:
        raise UserError(
            "cond.conditioner.mask=true: the layouts of others hide no padding, and there these weights would compute something else. "
            "Networks with cond.conditioner.mask=false can be exported."
        )


def _check_dit(network: DiT, to: str) -> None:
    if to == "compvis":
        raise UserError(
            "ldm.network is a DiT, and the official latent diffusion has UNets alone. Use to=diffusers; ldm.weights reads its own files in "
            "the store."
        )
    if network.vector_embed is None or network.blocks[0].cross is not None:
        raise UserError(
            "diffusers' DiT takes classes as a vector and no tokens. Networks with cond=class_vector can be exported; ldm.weights reads "
            "this one's own files in the store."
        )
    if network.t_embedder.frequency_shift != diffusers_dit.SHIFT:
        raise UserError(
            f"ldm.network.frequency_shift={network.t_embedder.frequency_shift}: diffusers computes the time's frequencies of a DiT with "
            f"{diffusers_dit.SHIFT}, and there these weights would compute something else. Networks trained with "
            f"ldm.network.frequency_shift={diffusers_dit.SHIFT} can be exported; ldm.weights reads this one's own files in the store."
        )


def _check_unet(network: UNet, to: str) -> None:
    if network.grouping != OFFICIAL:
        raise UserError(
            f"ldm.network.norm_groups or norm_group_channels: the layouts of others normalise in {OFFICIAL.groups} groups, and there "
            f"these weights would compute something else. Networks with norm_groups={OFFICIAL.groups} can be exported; ldm.weights "
            "reads this one's own files in the store."
        )
    if to == "compvis" and hasattr(network, "vector_embed"):
        raise UserError(
            "cond gives this UNet a vector (cond=class_vector), for which the official layout has no place. Use to=diffusers; or networks "
            "with tokens (cond=class_label) or without a condition."
        )
    if official_unet.layout_of(network.state_dict()) is None:
        raise UserError(
            "ldm.network.level_channels: the layouts of others have levels that are whole multiples of ldm.network.width. Networks with "
            "ldm.network.multipliers can be exported; ldm.weights reads this one's own files in the store."
        )


LEARNED: dict[str, tuple[type, ...]] = {
    "compvis": (ClassLabel, Text, Layout, SpatialRescaler),
    "diffusers": (ClassLabel, Text, Layout),
}
"""Conditioners with weights for which a layout has a place."""


def _tokenizer_files(plan: Plan) -> dict[str, bytes]:
    """tokenizer/ as `transformers` reads it, of a denoiser that reads texts: its own, or the folder that it was given."""
    text = plan.resolved.conditioner
    if not isinstance(text, Text):
        return {}
    if not text.learns_tokens:
        folder = Path(plan.resolved.cfg.cond.conditioner.tokenizer).expanduser()
        found = [folder / name for name in outside.TOKENIZER if (folder / name).is_file()]
        return {f"tokenizer/{file.name}": file.read_bytes() for file in found}
    own = plan.store.check(plan.stage(TokenizerStage).address, tokenizer.FILE)
    config = json.dumps(tokenizer.hub_config(text.length), indent=2) + "\n"
    return {f"tokenizer/{tokenizer.FILE}": own.read_bytes(), "tokenizer/tokenizer_config.json": config.encode()}


# ---- to=compvis ----------------------------------------------------------------------------------------------------------


def _official_notes(
    cfg: DictConfig, copies: Copies, facts: denoisers.ModelFacts, first_stage: dict[str, Tensor], groups: list[int]
) -> list[str]:
    notes, target = [], facts.target
    if any(name.endswith("token_emb.weight") for name in copies.raw) and not facts.unused:
        notes.append(
            "the official text transformer has a head that computes nothing (to_logits) and was never trained here: zeros"
        )
    if target not in ("eps", "z0"):
        notes.append(
            f"the official code knows networks that predict eps or z0; this one predicts {target or 'something else'}"
        )
    scale, shift = first_stage["scale"].flatten(), first_stage["shift"].flatten()
    if (scale != scale[0]).any() or shift.any():
        notes.append(
            "the latent's scale per channel and its shift have no place in the official model; ldmlab finds them"
        )
    elif not weights_first_stage.scale_by_std(cfg) and scale[0] != 1:
        notes.append(f"scale_factor: {scale[0].item():.6g} goes into the official model's yaml (scale_by_std is false)")
    if any(k.startswith("conditioner.") and not torch.equal(v, copies.raw[k]) for k, v in (copies.ema or {}).items()):
        notes.append(
            "the official code averages the UNet alone and samples with the raw conditioner; ldmlab finds the averaged one"
        )
    return notes + (_group_notes(groups) if groups else [])


def _group_notes(groups: list[int]) -> list[str]:
    if groups == [compvis.GROUPS]:
        return []
    found = " and ".join(map(str, groups))
    return [
        f"the official code normalises in {compvis.GROUPS} groups at any width, this first stage in {found}: "
        "there the same weights compute something else"
    ]


def _numbers(tensor: Tensor) -> str:
    numbers = tensor.flatten().tolist()
    return " ".join(f"{v:.6g}" for v in (numbers if len(set(numbers)) > 1 else numbers[:1]))
