"""The layout of diffusers' `AutoencoderKL` and `VQModel` ↔ the official one (`compvis.py` goes on to ours).

Three things differ: names, the order of the decoder's levels (`up_blocks` counts from the latent, `up` from the image),
and attention, which is made of linear layers [C, C] there and of 1×1 convolutions [C, C, 1, 1] here. diffusers is not
imported.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop.compvis import GROUPS, Layout, some

RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
DEPRECATED = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # AttentionBlock, since replaced
LINEAR = tuple(f".{name}.weight" for official, name in ATTENTION.items() if official != "norm")
PLAIN = {
    "encoder.conv_in": "encoder.conv_in", "encoder.norm_out": "encoder.conv_norm_out", "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in", "decoder.norm_out": "decoder.conv_norm_out", "decoder.conv_out": "decoder.conv_out",
    "quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv", "quantize.embedding": "quantize.embedding",
}  # fmt: skip
CLASSES = ("AutoencoderKL", "VQModel")


def layer_table(levels: int, blocks: int) -> dict[str, str]:
    """Every layer that a network with so many levels and encoder blocks a level can have: official name → theirs."""
    table = dict(PLAIN)

    def residual(official: str, theirs: str) -> None:
        table.update({f"{official}.{a}": f"{theirs}.{b}" for a, b in RESIDUAL.items()})

    def attention(official: str, theirs: str) -> None:
        table.update({f"{official}.{a}": f"{theirs}.{b}" for a, b in ATTENTION.items()})

    for side in ("encoder", "decoder"):
        residual(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0")
        attention(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
        residual(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1")
    for level in range(levels):
        down, down_theirs = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        up, up_theirs = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        table[f"{down}.downsample.conv"] = f"{down_theirs}.downsamplers.0.conv"
        table[f"{up}.upsample.conv"] = f"{up_theirs}.upsamplers.0.conv"
        for b in range(blocks + 1):  # the encoder has one block fewer; a name that no file has does no harm
            residual(f"{down}.block.{b}", f"{down_theirs}.resnets.{b}")
            attention(f"{down}.attn.{b}", f"{down_theirs}.attentions.{b}")
            residual(f"{up}.block.{b}", f"{up_theirs}.resnets.{b}")
            attention(f"{up}.attn.{b}", f"{up_theirs}.attentions.{b}")
    return table


def is_diffusers(names: Mapping[str, Tensor]) -> bool:
    """Whether the names are diffusers'."""
    return any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names)


def to_official(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names and shapes; today's attention names and the deprecated ones (`DEPRECATED`) are read.

    Raises WeightsError for a name that no first stage has.
    """
    back = {b: a for a, b in layer_table(*_size(theirs, "encoder.down_blocks.", "resnets")).items()}
    official, strange = {}, []
    for name, tensor in theirs.items():
        layer, kind = today(name).rsplit(".", 1)
        if layer not in back:
            strange.append(name)
            continue
        convolution = today(name).endswith(LINEAR) and ".attentions." in name and tensor.ndim == 2
        official[f"{back[layer]}.{kind}"] = tensor[:, :, None, None] if convolution else tensor
    if strange:
        raise WeightsError(
            f"{some(strange)}: no first stage has {'this name' if len(strange) == 1 else 'these names'}."
        )
    return official


def from_official(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names of today, attention weights as [C, C]. The other direction of `to_official`."""
    table = layer_table(*_size(official, "encoder.down.", "block"))
    theirs = {}
    for name, tensor in official.items():
        layer, kind = name.rsplit(".", 1)
        if layer not in table:
            raise WeightsError(f"{name}: diffusers has no place for it.")
        new = f"{table[layer]}.{kind}"
        theirs[new] = tensor[:, :, 0, 0] if new.endswith(LINEAR) and ".attentions." in new else tensor
    return theirs


def _size(names: Mapping[str, Tensor], prefix: str, kind: str) -> tuple[int, int]:
    """(levels, blocks of an encoder level), counted."""
    found = [name.removeprefix(prefix).split(".") for name in names if name.startswith(prefix)]
    levels = [int(f[0]) for f in found if f[0].isdigit()]
    blocks = [int(f[2]) for f in found if len(f) > 2 and f[1] == kind and f[2].isdigit()]
    return 1 + max(levels, default=-1), 1 + max(blocks, default=-1)


def today(name: str) -> str:
    """A tensor's name with the layers of today's attention for the deprecated ones (`DEPRECATED`)."""
    parts = name.split(".")
    if "attentions" in parts and len(parts) > 1 and parts[-2] in DEPRECATED:
        parts[-2] = DEPRECATED[parts[-2]]
    return ".".join(parts)


# ---- config.json ---------------------------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What config.json says beyond names and shapes."""

    groups: int  # of every normalisation
    scale: Tensor | None  # z = (raw − shift) · scale, float32 of one number or one per channel; None: the file has none
    shift: Tensor | None


def read_config(config: Mapping[str, Any]) -> Facts:
    """Raises WeightsError for a class or a function of another network than ours."""
    name = config.get("_class_name", "AutoencoderKL")
    if name not in CLASSES:
        raise WeightsError(f"config.json is of a {name}; {' and '.join(CLASSES)} can be imported.")
    for key, allowed in {"act_fn": ("silu", "swish"), "norm_type": ("group",)}.items():
        if config.get(key, allowed[0]) not in allowed:
            raise WeightsError(f"config.json has {key}={config[key]}; this network has {allowed[0]} and nothing else.")
    try:
        groups = int(config.get("norm_num_groups", GROUPS))
        if config.get("scaling_factor") is None:
            return Facts(groups, None, None)
        scale = torch.tensor(float(config["scaling_factor"]))
        shift = torch.tensor(float(config.get("shift_factor") or 0.0))
        if config.get("latents_std") is not None:  # pipelines: z = (raw − mean) · scaling_factor / std
            scale = scale / torch.tensor(config["latents_std"])
            shift = torch.tensor(config.get("latents_mean") or [0.0])
        return Facts(groups, scale, shift)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"config.json holds a value of another type than diffusers writes ({error}).") from None


def make_config(layout: Layout, groups: list[int], resolution: int, scale_C: Tensor, shift_C: Tensor) -> dict[str, Any]:
    """config.json of the `AutoencoderKL` or `VQModel` that computes what our network computes.

    groups: the numbers of groups that occur; scale_C, shift_C: one number a channel.

    Raises WeightsError for a network or a scale that diffusers cannot express.
    """
    if layout.multipliers[0] != 1:
        raise WeightsError(
            f"ae.network.multipliers={layout.multipliers}: diffusers' first convolution is as wide as its first level, "
            "so only networks whose first multiplier is 1 can be exported to it. Use to=compvis."
        )
    if len(groups) != 1:
        raise WeightsError(
            f"ae.network.width={layout.width}: levels of this network normalise in {' and '.join(map(str, groups))} groups, "
            "diffusers knows one number for all. Multiples of 32 from 128 up have 32 everywhere; or use to=compvis."
        )
    is_vq, per_channel = layout.codes is not None, bool((scale_C != scale_C[0]).any() or (shift_C != shift_C[0]).any())
    if is_vq and (per_channel or shift_C.any()):
        raise WeightsError(
            "ae.latent_scale.mode=per_channel: VQModel's config has one scaling_factor and no shift. "
            "Train or import the stage with ae.latent_scale.mode=global, or use to=compvis."
        )
    attention = [2**level in layout.attention_factors for level in range(len(layout.multipliers))]
    config: dict[str, Any] = {
        "_class_name": CLASSES[is_vq], "in_channels": 3, "out_channels": 3,
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attention)],
        "block_out_channels": layout.widths, "layers_per_block": layout.blocks, "act_fn": "silu",
        "latent_channels": layout.c, "norm_num_groups": groups[0], "sample_size": resolution,
        "mid_block_add_attention": layout.middle_attention, "force_upcast": True,
        "scaling_factor": 1.0 if per_channel else scale_C[0].item(),
    }  # fmt: skip
    if is_vq:
        return config | {"num_vq_embeddings": layout.codes, "vq_embed_dim": layout.c, "norm_type": "group"}
    if per_channel:
        return config | {"latents_mean": shift_C.tolist(), "latents_std": (1 / scale_C).tolist()}
    return config | {"shift_factor": shift_C[0].item() or None}
