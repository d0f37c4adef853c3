"""A first stage of the store, written as others read it."""

from pathlib import Path

from torch import Tensor

from ldmlab import build
from ldmlab.config.compose import Composed
from ldmlab.errors import UserError
from ldmlab.interop import compvis, weights
from ldmlab.interop import import_first_stage as imported
from ldmlab.pipeline.decoder import decoding_address
from ldmlab.pipeline.run import prepare
from ldmlab.store.checkpoint import load_tensors


def export(composed: Composed, to: str, out: Path, command: str) -> tuple[list[Path], list[str]]:
    """The files written, and what their format does not say.

    Raises UserError when the stage is not in the store, WeightsError when the format cannot express it or another file
    is in the way.
    """
    cfg = composed.cfg
    plan = prepare(composed)
    store, data = plan.store, plan.resolved.data
    stage = decoding_address(plan)
    if store.done(stage) is None:
        again = " ".join(w for w in command.split() if not w.startswith(("to=", "out=", "until=")))
        raise UserError(
            f"the {stage.stage} {stage.id} is not in the store. "
            f"Make it first: {again.replace('export.py', 'train.py')} until=autoencoder"
        )
    tensors = load_tensors(store.check(stage, "autoencoder.safetensors"))
    with build.shapes_only():
        ae = build.autoencoder(cfg)
    if not imported.tensors_of(ae):
        raise UserError(f"ae={composed.choices['ae']} has no weights to export.")
    groups = imported.groups_of(ae)
    if to == "diffusers":
        return weights.write(out, weights.as_diffusers(tensors, groups, data.resolution)), _diffusers_notes(tensors)
    notes = [f"the latent's scale is {_numbers(tensors['scale'])}, its shift {_numbers(tensors['shift'])}: scale_factor of "
             "the official diffusion, which knows one number and no shift"]  # fmt: skip
    if groups != [compvis.GROUPS]:
        found = " and ".join(map(str, groups))
        notes.append(
            f"the official code normalises in {compvis.GROUPS} groups at any width, this network in {found}: "
            "there the same weights compute something else"
        )
    return weights.write(out, weights.as_compvis(tensors, groups)), notes


def _diffusers_notes(tensors: dict[str, Tensor]) -> list[str]:
    if len(set(tensors["scale"].flatten().tolist())) > 1:
        return ["a scale per channel is latents_mean and latents_std in config.json; not every pipeline reads them"]
    return []


def _numbers(tensor: Tensor) -> str:
    numbers = tensor.flatten().tolist()
    return " ".join(f"{v:.6g}" for v in (numbers if len(set(numbers)) > 1 else numbers[:1]))
