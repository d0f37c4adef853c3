"""A denoiser of the store with what it needs, written as others read it.

to=compvis: one model.ckpt of the whole latent diffusion model, first stage included, from which `ae.weights` and `ldm.weights`
both read. to=diffusers: a folder with unet/, class_embedder/ and scheduler/; the first stage goes beside them with part=ae.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmlab import build
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.config.compose import Composed
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import UserError
from ldmlab.interop import compvis, denoisers, schedules, weights
from ldmlab.interop import import_denoiser as imported_denoiser
from ldmlab.interop import import_first_stage as imported
from ldmlab.interop.official_unet import Copies
from ldmlab.networks.unet import UNet
from ldmlab.pipeline.decoder import decoding_address
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.run import prepare
from ldmlab.store.checkpoint import load_tensors


def export(composed: Composed, to: str, out: Path, command: str) -> tuple[list[Path], list[str]]:
    """The files written, and what their format does not say.

    Raises UserError when the denoiser is not in the store, or of a kind that others have no layout for, WeightsError when the
    format cannot express it or another file is in the way.
    """
    cfg = composed.cfg
    plan = prepare(composed)
    store, data, trained = plan.store, plan.resolved.data, plan.stage(DenoiserStage).address
    if cfg.eval.ema_width is not None:
        raise UserError("eval.ema_width is made when it is sampled and is no file to export. Use eval.ema_width=null.")
    with build.shapes_only():
        ae = build.autoencoder(cfg)
        model = build.denoiser(cfg, ae, data)
    _check_kind(model)
    stage = decoding_address(plan)
    for address in (stage, trained):
        if store.done(address) is None:
            again = " ".join(w for w in command.split() if not w.startswith(("to=", "out=", "until=", "part=")))
            raise UserError(
                f"the {address.stage} {address.id} is not in the store. "
                f"Make it first: {again.replace('export.py', 'train.py')} until=denoiser"
            )
    target = imported_denoiser.target_of(cfg)
    alpha_bar_T = build.objective(cfg).schedule.alpha_bar_T
    facts = denoisers.Facts(
        imported_denoiser.heads_of(model.network), alpha_bar_T, target, ae.latent_shape(data.resolution)[1]
    )
    folder = store.folder(trained)

    def copy(name: str) -> dict[str, Tensor] | None:
        whole = (folder / f"{name}.safetensors").is_file()
        return load_tensors(store.check(trained, f"{name}.safetensors")) if whole else None

    if to == "diffusers":
        chosen = copy("ema" if cfg.eval.weights == "ema" else "weights")
        assert chosen is not None  # prepare has refused eval.weights=ema without one
        return weights.write(out, denoisers.as_diffusers(chosen, facts)), _diffusers_notes(cfg, model, target)
    raw = copy("weights")
    assert raw is not None
    copies = Copies(raw, copy("ema"))
    first_stage = load_tensors(store.check(stage, "autoencoder.safetensors"))
    groups = imported.groups_of(ae)
    files = denoisers.as_compvis(copies, facts, first_stage, groups)
    return weights.write(out, files), _official_notes(copies, target, first_stage, groups)


def _check_kind(model: Denoiser) -> None:
    network, conditioner = model.network, model.conditioner
    if not isinstance(network, UNet):
        raise UserError(
            f"ldm.network is a {type(network).__name__}; UNets alone can be written for others. Its own files in the store "
            "(weights.safetensors, ema.safetensors) are plain safetensors, and ldm.weights reads them."
        )
    if hasattr(network, "vector_embed"):
        raise UserError(
            "cond gives this UNet a vector (cond=class_vector), for which neither layout has a place. Networks with tokens "
            "(cond=class_label) or without a condition can be exported."
        )
    learned = any(name.startswith("conditioner.") for name, _ in model.named_parameters())
    if learned and not isinstance(conditioner, ClassLabel):
        raise UserError(
            f"cond.conditioner is a {type(conditioner).__name__} with weights; only a ClassLabel can be exported."
        )


def _official_notes(copies: Copies, target: str | None, first_stage: dict[str, Tensor], groups: list[int]) -> list[str]:
    notes = []
    if target not in ("eps", "z0"):
        notes.append(
            f"the official code knows networks that predict eps or z0; this one predicts {target or 'something else'}"
        )
    scale, shift = first_stage["scale"].flatten(), first_stage["shift"].flatten()
    if (scale != scale[0]).any() or shift.any():
        notes.append(
            "the latent's scale per channel and its shift have no place in the official model; ldmlab finds them"
        )
    if any(k.startswith("conditioner.") and not torch.equal(v, copies.raw[k]) for k, v in (copies.ema or {}).items()):
        notes.append(
            "the official code averages the UNet alone and samples with the raw conditioner; ldmlab finds the averaged one"
        )
    if groups not in ([], [compvis.GROUPS]):
        found = " and ".join(map(str, groups))
        notes.append(
            f"the official first stage normalises in {compvis.GROUPS} groups at any width, this one in {found}"
        )
    return notes


def _diffusers_notes(cfg: Any, model: Denoiser, target: str | None) -> list[str]:
    notes = [
        f"the weights are eval.weights={cfg.eval.weights}; the first stage goes beside them with part=ae out=…/vae"
    ]
    if isinstance(model.conditioner, ClassLabel):
        rows = model.conditioner.embedding.num_embeddings
        notes.append(
            f"encoder_hidden_states is a row of class_embedder, [B, 1, {model.conditioner.embedding.embedding_dim}]; "
            f"row {rows - 1} means no class"
        )
    if target not in schedules.PREDICTS:
        notes.append(f"no scheduler of diffusers' DDPM family predicts {target or 'this target'}, so none is written")
    return notes
