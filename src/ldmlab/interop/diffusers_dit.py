"""diffusers' `DiTTransformer2DModel` (once `Transformer2DModel` with norm_type=ada_norm_zero) ↔ our `networks.dit.DiT` with a class vector.

    diffusers                                          ours
    pos_embed.proj                                     network.x_embedder.proj
    transformer_blocks.I.norm1.emb.timestep_embedder   network.t_embedder, the same in every block I
    transformer_blocks.I.norm1.emb.class_embedder      conditioner.embedding, the same in every block I
    transformer_blocks.I.norm1.linear                  network.blocks.I.adaLN_modulation.1
    transformer_blocks.I.attn1.{to_q,to_k,to_v}        network.blocks.I.attn.qkv
    transformer_blocks.I.{attn1.to_out.0,ff.net.…}     network.blocks.I.{attn.proj,mlp.…}
    proj_out_1, proj_out_2                             network.final_layer.{adaLN_modulation.1,linear}

Networks trained by the authors' code predict a variance beside the noise; nothing here reads it, so its rows of the last layer are kept
aside and come back in an export. diffusers spaces the frequencies of the time otherwise than the authors do (docs/paper.md#dit):
`ldm.network.frequency_shift`. diffusers is not imported.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop.class_tables import TABLE
from ldmlab.interop.compvis import some

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
SHIFT = 1  # `ldm.network.frequency_shift` of diffusers' code
BLOCK = {
    "norm1.linear": "adaLN_modulation.1", "attn1.to_out.0": "attn.proj", "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2",
}  # fmt: skip
SINGLE = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
SHARED = {
    "norm1.emb.timestep_embedder.linear_1.weight": "network.t_embedder.mlp.0.weight",
    "norm1.emb.timestep_embedder.linear_1.bias": "network.t_embedder.mlp.0.bias",
    "norm1.emb.timestep_embedder.linear_2.weight": "network.t_embedder.mlp.2.weight",
    "norm1.emb.timestep_embedder.linear_2.bias": "network.t_embedder.mlp.2.bias",
    "norm1.emb.class_embedder.embedding_table.weight": TABLE,
}
"""What every block of diffusers holds for itself, and we and the authors hold once."""

QKV = ("to_q", "to_k", "to_v")
LINEAR, VARIANCE = "network.final_layer.linear.", "network.final_layer.variance."
POSITIONS = "pos_embed.pos_embed"  # fixed, in older files


class Converted(NamedTuple):
    """A DiT by our names."""

    tensors: dict[str, Tensor]  # of `Denoiser.state_dict()`
    heads: dict[str, int]  # of each attention, by its name in the network
    unused: dict[str, Tensor]  # rows of the last layer that predict a variance


def is_dit(names: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a transformer of diffusers with patches."""
    return "pos_embed.proj.weight" in names and "proj_out_2.weight" in names


def to_ours(theirs: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Raises WeightsError for a name that no such transformer has, for blocks that do not share what ours shares, and for a config.json
    of another network."""
    heads = check_config(config, theirs)
    blocks = 1 + max((int(name.split(".")[1]) for name in theirs if name.startswith("transformer_blocks.")), default=-1)
    ours: dict[str, Tensor] = {}
    strange = []
    for name, tensor in theirs.items():
        if name == POSITIONS:
            continue
        if name.startswith("transformer_blocks."):
            _, at, inner = name.split(".", 2)
            if not _place(ours, int(at), inner, tensor):
                strange.append(name)
            continue
        layer, _, kind = name.rpartition(".")
        if layer in SINGLE:
            ours[f"network.{SINGLE[layer]}.{kind}"] = tensor
        else:
            strange.append(name)
    if strange:
        raise WeightsError(
            f"{some(strange)}: no DiT of diffusers has {'this name' if len(strange) == 1 else 'these names'}."
        )
    for index in range(blocks):
        for kind in ("weight", "bias"):
            parts = [theirs.get(f"transformer_blocks.{index}.attn1.{q}.{kind}") for q in QKV]
            if any(part is None for part in parts):
                raise WeightsError(f"transformer_blocks.{index}.attn1 lacks one of {', '.join(QKV)} ({kind}).")
            ours[f"network.blocks.{index}.attn.qkv.{kind}"] = torch.cat([part for part in parts if part is not None])
    unused = _split_variance(ours)
    return Converted(ours, {f"blocks.{index}.attn": heads for index in range(blocks)}, unused)


def from_ours(tensors: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names, of a DiT whose table of classes is as wide as the network (`class_tables.folded`). Undoes `to_ours`."""
    back = {b: a for a, b in SINGLE.items()}
    inner = {b: a for a, b in BLOCK.items()}
    whole = _join_variance(tensors, unused)
    if TABLE not in tensors:
        raise WeightsError(
            "diffusers' DiT always has a table of classes, and this one has none (cond=class_vector makes one)."
        )
    theirs: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        layer, _, kind = name.removeprefix("network.").rpartition(".")
        parts = layer.split(".", 2)
        if layer in back:
            theirs[f"{back[layer]}.{kind}"] = tensor
        elif parts[0] == "blocks" and parts[2] == "attn.qkv":
            for q, part in zip(QKV, tensor.chunk(3), strict=True):
                theirs[f"transformer_blocks.{parts[1]}.attn1.{q}.{kind}"] = part.clone()
        elif parts[0] == "blocks" and parts[2] in inner:
            theirs[f"transformer_blocks.{parts[1]}.{inner[parts[2]]}.{kind}"] = tensor
        elif name not in SHARED.values():
            raise WeightsError(f"{name}: diffusers' DiT has no place for it.")
    for index in range(_blocks(tensors)):
        theirs |= {f"transformer_blocks.{index}.{a}": whole[b].clone() for a, b in SHARED.items()}
    return theirs


def _place(ours: dict[str, Tensor], index: int, inner: str, tensor: Tensor) -> bool:
    """Put one tensor of a block; False for a name that no block has."""
    layer, _, kind = inner.rpartition(".")
    if inner in SHARED:
        if not torch.equal(ours.setdefault(SHARED[inner], tensor), tensor):
            raise WeightsError(
                f"transformer_blocks.{index}.{inner} differs between the blocks. Ours, and the authors' DiT, has one for all blocks, so "
                "these weights would compute something else."
            )
    elif layer in BLOCK:
        ours[f"network.blocks.{index}.{BLOCK[layer]}.{kind}"] = tensor
    else:
        return layer.startswith("attn1.") and layer.removeprefix("attn1.") in QKV
    return True


def _blocks(tensors: Mapping[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("network.blocks."))


def _split_variance(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the rows that predict a variance out of the last layer; nothing where there are none."""
    patch, channels = _patch_of(ours)
    weight = ours[f"{LINEAR}weight"]
    if weight.shape[0] != 2 * patch**2 * channels:
        return {}
    unused = {}
    for kind in ("weight", "bias"):
        both = ours[LINEAR + kind].unflatten(0, (patch**2, 2, channels))
        ours[LINEAR + kind], unused[VARIANCE + kind] = (both[:, i].flatten(0, 1).contiguous() for i in (0, 1))
    return unused


def _join_variance(ours: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other direction."""
    if f"{VARIANCE}weight" not in unused:
        return dict(ours)
    patch, channels = _patch_of(ours)
    joined = {}
    for kind in ("weight", "bias"):
        parts = [tensor.unflatten(0, (patch**2, channels)) for tensor in (ours[LINEAR + kind], unused[VARIANCE + kind])]
        joined[LINEAR + kind] = torch.stack(parts, dim=1).flatten(0, 2)
    return {**ours, **joined}


def _patch_of(ours: Mapping[str, Tensor]) -> tuple[int, int]:
    """(side of a patch, input channels)."""
    weight = ours["network.x_embedder.proj.weight"]
    return weight.shape[2], weight.shape[1]


# ---- config.json ---------------------------------------------------------------------------------------------------------

FIXED: dict[str, tuple[Any, ...]] = {
    "norm_type": ("ada_norm_zero",), "activation_fn": ("gelu-approximate",), "attention_bias": (True,),
    "norm_elementwise_affine": (False,), "norm_eps": (1e-5, 1e-6), "double_self_attention": (False,), "only_cross_attention": (False,),
    "cross_attention_dim": (None,), "num_vector_embeds": (None,), "attention_type": (None, "default"), "caption_channels": (None,),
    "interpolation_scale": (None, 1),
}  # fmt: skip
"""Values of config.json with which their transformer computes what ours does; the first is what a missing key means. The published
folders say norm_eps=1e-5 for weights that were trained with the authors' 1e-6, which is ours; an export says 1e-6."""

SILENT = {
    "sample_size", "dropout", "upcast_attention", "norm_num_groups", "num_embeds_ada_norm", "in_channels", "out_channels", "num_layers",
    "patch_size", "use_linear_projection", "use_additional_conditions",
}  # fmt: skip
"""Keys that change nothing, or that names and shapes repeat."""


def check_config(config: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> int:
    """Heads of each attention. WeightsError naming the field of a network that computes something else."""
    name = config.get("_class_name")
    if name not in CLASSES:
        raise WeightsError(
            f"config.json is of a {name}; {' and '.join(CLASSES)} can be imported."
            if name
            else "it needs diffusers' config.json beside it, with _class_name: the heads of an attention are only said there."
        )
    if name == CLASSES[1] and "norm_type" not in config:
        raise WeightsError("config.json says no norm_type; this network has ada_norm_zero and nothing else.")
    for key, allowed in FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            shown = allowed[0] if len(allowed) == 1 else " or ".join(map(str, allowed))
            raise WeightsError(f"config.json has {key}={config[key]}; this network has {shown} and nothing else.")
    known = {*FIXED, *SILENT, "num_attention_heads", "attention_head_dim"}
    if unknown := [k for k in config if not k.startswith("_") and k not in known and config[k] is not None]:
        raise WeightsError(f"config.json has {unknown[0]}={config[unknown[0]]}, a field that is not known here.")
    heads, each = config.get("num_attention_heads", 16), config.get("attention_head_dim", 72)
    width = theirs["pos_embed.proj.weight"].shape[0]
    if not isinstance(heads, int) or heads < 1 or heads * each != width:
        raise WeightsError(
            f"config.json has num_attention_heads={heads} of attention_head_dim={each} features, and the network is {width} wide."
        )
    return heads


def make_config(tensors: Mapping[str, Tensor], unused: Mapping[str, Tensor], heads: int, size: int) -> dict[str, Any]:
    """config.json of the DiTTransformer2DModel that computes what our DiT computes; `size`: height of the latent."""
    patch, channels = _patch_of(tensors)
    width = tensors["network.x_embedder.proj.weight"].shape[0]
    rows = tensors[TABLE].shape[0]
    return {
        "_class_name": CLASSES[0], "num_attention_heads": heads, "attention_head_dim": width // heads, "in_channels": channels,
        "out_channels": channels * (2 if unused else 1), "num_layers": _blocks(tensors), "sample_size": size, "patch_size": patch,
        "activation_fn": "gelu-approximate", "attention_bias": True, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
        "norm_eps": 1e-6, "num_embeds_ada_norm": rows - 1, "dropout": 0.0,
    }  # fmt: skip
