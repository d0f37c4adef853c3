"""A denoiser as a folder for diffusers: a whole pipeline where it has one that computes the same, else its parts and a README.md."""

import json
from collections.abc import Mapping

from torch import Tensor

from ldmlab.conditioning.text import Text
from ldmlab.conditioning.tokenizer import FromFolder
from ldmlab.errors import WeightsError
from ldmlab.interop import denoisers, weights
from ldmlab.pipeline import weights_denoiser, weights_first_stage
from ldmlab.pipeline.resolved import Resolved

TEXT_LENGTH, TEXT_F = 77, 8  # of every LDMTextToImagePipeline: written into its code

NULL_CLASS = 1000  # of every DiTPipeline

README = """# A denoiser of ldmlab, in diffusers' parts

{why}

    from diffusers import {kind}, DDIMScheduler
    {part} = {kind}.from_pretrained("{part}")
    scheduler = DDIMScheduler.from_pretrained("scheduler")     # where the folder is there

{notes}
"""


def diffusers_folder(
    chosen: dict[str, Tensor],
    facts: denoisers.ModelFacts,
    resolved: Resolved,
    first_stage: dict[str, Tensor],
    beside: Mapping[str, bytes],
) -> tuple[dict[str, bytes], list[str]]:
    """The files, and what they do not say. `chosen`: the copy of the weights; `beside`: files that go along (the tokenizer's).

    Raises WeightsError for a network that diffusers cannot express.
    """
    files = denoisers.as_diffusers(chosen, facts) | dict(beside)
    try:
        return _whole_pipeline(files, resolved, first_stage), []
    except WeightsError as error:
        why = f"No pipeline of diffusers loads this folder whole: {error}"
    notes = ["the first stage goes beside these files with part=ae out=…/vae", *_notes(files, chosen, resolved)]
    part = next(part for part in denoisers.PARTS if f"{part}/config.json" in files)
    kind = json.loads(files[f"{part}/config.json"])["_class_name"]
    listed = "\n".join(f"- {note}" for note in notes)
    readme = README.format(why=why, part=part, kind=kind, notes=listed)
    return files | {"README.md": readme.encode()}, [why, *notes]


def _notes(files: Mapping[str, bytes], chosen: dict[str, Tensor], resolved: Resolved) -> list[str]:
    """How a caller gives the condition."""
    table = chosen.get(weights_denoiser.TABLE)
    if table is not None:
        rows, dim = table.shape
        null = f"row {rows - 1} means no class" if rows > len(resolved.data.class_names) else "no row means no class"
        if resolved.conditioner.context_dim is None:
            return [f"class_labels are numbers of classes; {null}"]
        return [f"encoder_hidden_states is a row of class_embedder, [B, 1, {dim}]; {null}"]
    if f"{denoisers.BERT}/config.json" in files:
        what = (
            "the token numbers of tokenizer/" if isinstance(resolved.conditioner, Text) else "a layout's token numbers"
        )
        reader = "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion.LDMBertModel"
        return [f"encoder_hidden_states is what bert/ ({reader}) makes of {what}, without a mask"]
    return []


def _whole_pipeline(files: dict[str, bytes], resolved: Resolved, first_stage: dict[str, Tensor]) -> dict[str, bytes]:
    """Files that DiffusionPipeline.from_pretrained loads. Raises WeightsError, saying why, where no pipeline computes this."""
    conditioner, ae = resolved.conditioner, resolved.autoencoder
    is_dit = f"{denoisers.PARTS[1]}/config.json" in files
    if conditioner.needs and not isinstance(conditioner, Text) and not is_dit:
        raise WeightsError(f"it has none for this condition ({', '.join(conditioner.needs)}).")
    scale, shift = first_stage["scale"].flatten(), first_stage["shift"].flatten()
    if (scale != scale[0]).any() or shift.any():
        raise WeightsError("pipelines know one scale of the latent; this one has a scale per channel or a shift.")
    stage = None
    if weights_first_stage.tensors_of(ae):
        stage = weights.as_diffusers(first_stage, weights_first_stage.groups_of(ae), resolved.resolution)
    elif scale[0] != 1:
        raise WeightsError("DDIMPipeline works on unscaled pixels; ae.latent_scale gives them a scale.")
    if is_dit:
        kl = stage is not None and json.loads(stage["config.json"])["_class_name"] == "AutoencoderKL"
        if not kl or len(resolved.data.class_names) != NULL_CLASS:
            raise WeightsError(
                f"DiTPipeline has an AutoencoderKL, and its null class is row {NULL_CLASS}, as of {NULL_CLASS} classes."
            )
        return denoisers.as_pipeline("DiTPipeline", files, stage, {})
    if not isinstance(conditioner, Text):
        return denoisers.as_pipeline("DDIMPipeline" if stage is None else "LDMPipeline", files, stage, {})
    if stage is None or ae.f != TEXT_F or conditioner.length != TEXT_LENGTH:
        raise WeightsError(
            f"LDMTextToImagePipeline has a first stage with f = {TEXT_F} and reads {TEXT_LENGTH} tokens; this one has f = {ae.f} and "
            f"cond.conditioner.length={conditioner.length}."
        )
    given = conditioner.tokenizer
    kind = given.class_name if isinstance(given, FromFolder) else "PreTrainedTokenizerFast"
    others = {"bert": ["latent_diffusion", "LDMBertModel"], "tokenizer": ["transformers", kind]}
    return denoisers.as_pipeline("LDMTextToImagePipeline", files, stage, others)
