"""The layout of diffusers' `UNet2DModel` and `UNet2DConditionModel` ↔ the official one (`official_unet.py` goes on to ours).

Names differ, and so does plain self-attention: one convolution [3C, C, 1] for q, k, v, ordered head by head, there are
three linear layers [C, C] here. So the number of heads, which config.json says, is needed to convert. diffusers is not
imported.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop.compvis import some
from ldmlab.interop.diffusers import today
from ldmlab.interop.official_unet import UNetLayout

GROUPS, EPS = 32, 1e-5  # of every normalisation of a residual block, in our network and in the official one
PLAIN, TOKENS = CLASSES = ("UNet2DModel", "UNet2DConditionModel")

RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
SINGLE = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
QKV = ("to_q", "to_k", "to_v")


class Piece(NamedTuple):
    """One module that both sides have."""

    kind: str  # "single" | "residual" | "attention" | "down" | "up"
    level: int  # whose width and heads it has, 0 is full size
    official: str
    theirs: str


def pieces(blocks: int, attended: list[bool]) -> list[Piece]:
    """Every module of a network whose levels have so many blocks and, where `attended`, attention."""
    found = [Piece("single", 0, *names) for names in SINGLE.items()]
    levels, per = len(attended), blocks + 1
    for level in range(levels):
        for b in range(blocks):
            at = f"input_blocks.{1 + level * per + b}"
            found.append(Piece("residual", level, f"{at}.0", f"down_blocks.{level}.resnets.{b}"))
            found.append(Piece("attention", level, f"{at}.1", f"down_blocks.{level}.attentions.{b}"))
        found.append(Piece("down", level, f"input_blocks.{(level + 1) * per}.0", f"down_blocks.{level}.downsamplers.0"))
    for index, (kind, theirs) in enumerate(
        [("residual", "resnets.0"), ("attention", "attentions.0"), ("residual", "resnets.1")]
    ):
        found.append(Piece(kind, levels - 1, f"middle_block.{index}", f"mid_block.{theirs}"))
    for step in range(levels):
        level = levels - 1 - step
        for b in range(per):
            at = f"output_blocks.{step * per + b}"
            found.append(Piece("residual", level, f"{at}.0", f"up_blocks.{step}.resnets.{b}"))
            if attended[level]:
                found.append(Piece("attention", level, f"{at}.1", f"up_blocks.{step}.attentions.{b}"))
        last = f"output_blocks.{step * per + blocks}.{2 if attended[level] else 1}"
        found.append(Piece("up", level, last, f"up_blocks.{step}.upsamplers.0"))
    return found


def is_diffusers(names: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a UNet of diffusers."""
    return "conv_in.weight" in names and any(name.startswith("down_blocks.") for name in names)


def to_official(theirs: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(official names of the UNet alone, heads of each attention by its official name).

    Raises WeightsError for a name that no such UNet has, and for a config.json of another network.
    """
    read = check_config(config)
    found = [name.split(".") for name in theirs if name.startswith("down_blocks.")]
    levels = 1 + max(int(parts[1]) for parts in found)
    blocks = 1 + max(int(parts[3]) for parts in found if parts[2] == "resnets")
    attended = [any(parts[1] == str(level) and parts[2] == "attentions" for parts in found) for level in range(levels)]
    table = {piece.theirs: piece for piece in pieces(blocks, attended)}
    official: dict[str, Tensor] = {}
    parts_of: dict[Piece, dict[str, Tensor]] = {}  # q, k, v of plain attention, by kind: weight and bias of each
    strange = []
    for name, tensor in theirs.items():
        piece, rest = _find(table, name, theirs=True)
        if piece is None:
            strange.append(name)
        elif piece.kind == "attention" and (
            inner := today(f"attentions.{rest}").removeprefix("attentions.")
        ).startswith(QKV):
            parts_of.setdefault(piece, {})[inner] = tensor
        else:
            new = _official_rest(piece, rest, tensor)
            if new is None:
                strange.append(name)
            else:
                official[f"{piece.official}.{new[0]}"] = new[1]
    if strange:
        raise WeightsError(f"{some(strange)}: no UNet of diffusers that can be read here has {_these(strange)}.")
    heads = {}
    for piece in (p for p in table.values() if p.kind == "attention"):
        width = _width(official, piece.official)
        if width is not None:
            heads[piece.official] = _heads(read, piece.level, levels, width)
    for piece, parts in parts_of.items():
        width = next(iter(parts.values())).shape[0]
        n = heads.setdefault(piece.official, _heads(read, piece.level, levels, width))
        if missing := [f"{q}.{kind}" for q in QKV for kind in ("weight", "bias") if f"{q}.{kind}" not in parts]:
            raise WeightsError(f"{piece.theirs} lacks {some(missing)}.")
        for kind in ("weight", "bias"):
            official[f"{piece.official}.qkv.{kind}"] = join_qkv([parts[f"{q}.{kind}"] for q in QKV], n)
    return official, heads


def from_official(unet: Mapping[str, Tensor], layout: UNetLayout, heads: Mapping[str, int]) -> dict[str, Tensor]:
    """diffusers' names of today. The other direction of `to_official`."""
    table = {piece.official: piece for piece in pieces(layout.blocks, layout.attended)}
    theirs: dict[str, Tensor] = {}
    for name, tensor in unet.items():
        piece, rest = _find(table, name, theirs=False)
        if piece is None:
            raise WeightsError(f"{name}: diffusers has no place for it.")
        if rest.startswith("qkv."):
            kind = rest.removeprefix("qkv.")
            for q, part in zip(QKV, split_qkv(tensor, heads[piece.official]), strict=True):
                theirs[f"{piece.theirs}.{q}.{kind}"] = part
            continue
        new, value = _their_rest(piece, rest, tensor, plain=layout.context_dim is None)
        theirs[f"{piece.theirs}.{new}"] = value
    return theirs


def split_qkv(qkv: Tensor, heads: int) -> list[Tensor]:
    """[3C, C, 1] or [3C], ordered head by head (q, k, v of the first head first) → three of [C, C] or [C]."""
    flat = qkv.flatten(1) if qkv.ndim > 1 else qkv
    each = flat.unflatten(0, (heads, 3, -1))
    return [each[:, i].flatten(0, 1) for i in range(3)]


def join_qkv(parts: list[Tensor], heads: int) -> Tensor:
    """The other direction: three of [C, C] or [C] → [3C, C, 1] or [3C]."""
    joined = torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)
    return joined[:, :, None] if joined.ndim > 1 else joined


def _find(table: Mapping[str, Piece], name: str, theirs: bool) -> tuple[Piece | None, str]:
    """The piece that a tensor belongs to, and its name inside."""
    parts = name.split(".")
    for length in (4, 3, 2, 1) if theirs else (3, 2):
        if piece := table.get(".".join(parts[:length])):
            return piece, ".".join(parts[length:])
    return None, ""


def _official_rest(piece: Piece, rest: str, tensor: Tensor) -> tuple[str, Tensor] | None:
    if piece.kind == "single":
        return rest, tensor
    layer, _, kind = rest.rpartition(".")
    if piece.kind == "attention":
        layer = today(f"attentions.{rest}").removeprefix("attentions.").rpartition(".")[0]
        if layer in ("group_norm", "to_out.0"):  # plain self-attention
            name = {"group_norm": "norm", "to_out.0": "proj_out"}[layer]
            return f"{name}.{kind}", tensor[:, :, None] if tensor.ndim == 2 else tensor
        projection = layer in ("proj_in", "proj_out") and tensor.ndim == 2  # use_linear_projection: the same map
        return rest, tensor[:, :, None, None] if projection else tensor
    if layer == "conv" and piece.kind in ("down", "up"):
        return f"{'op' if piece.kind == 'down' else 'conv'}.{kind}", tensor
    back = {b: a for a, b in RESIDUAL.items()}
    return (f"{back[layer]}.{kind}", tensor) if layer in back else None


def _their_rest(piece: Piece, rest: str, tensor: Tensor, plain: bool) -> tuple[str, Tensor]:
    if piece.kind == "single":
        return rest, tensor
    layer, _, kind = rest.rpartition(".")
    if piece.kind == "attention":
        if not plain:
            return rest, tensor
        name = {"norm": "group_norm", "proj_out": "to_out.0"}[layer]
        return f"{name}.{kind}", tensor[:, :, 0] if tensor.ndim == 3 else tensor
    if layer in ("op", "conv"):
        return f"conv.{kind}", tensor
    return f"{RESIDUAL[layer]}.{kind}", tensor


def _width(official: Mapping[str, Tensor], attention: str) -> int | None:
    norm = official.get(f"{attention}.norm.weight")
    return None if norm is None else norm.shape[0]


def _these(names: list[str]) -> str:
    return "this name" if len(names) == 1 else "these names"


# ---- config.json ---------------------------------------------------------------------------------------------------------

FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "freq_shift": (0,), "flip_sin_to_cos": (True,),
    "act_fn": ("silu", "swish"), "mid_block_scale_factor": (1,), "downsample_padding": (1,), "norm_num_groups": (GROUPS,),
    "norm_eps": (EPS,), "attn_norm_num_groups": (None, GROUPS), "add_attention": (True,), "class_embed_type": (None,),
    "num_class_embeds": (None,), "resnet_time_scale_shift": ("default", "scale_shift"), "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"), "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "only_cross_attention": (False,), "dual_cross_attention": (False,), "num_attention_heads": (None,),
    "reverse_transformer_layers_per_block": (None,), "addition_embed_type": (None,), "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "time_cond_proj_dim": (None,), "timestep_post_act": (None,), "time_embedding_act_fn": (None,),
    "attention_type": ("default",), "class_embeddings_concat": (False,), "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,), "projection_class_embeddings_input_dim": (None,), "addition_time_embed_dim": (None,),
}  # fmt: skip
"""Values of config.json with which their network computes what ours does; the first is what a missing key means."""

SHAPES = {
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "attention_head_dim", "cross_attention_dim", "transformer_layers_per_block", "time_embedding_dim",
    "use_linear_projection",
}  # fmt: skip
"""Keys that the tensors' names and shapes repeat, and attention_head_dim, which is read."""

SILENT = {"sample_size", "dropout", "upcast_attention", "num_train_timesteps", "addition_embed_type_num_heads"}
"""Keys that change no result of a finished network."""

BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D")
BLOCK_TYPES = {*BLOCKS, "UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"}


def check_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration. Raises WeightsError naming the field of a network that computes something else."""
    name = config.get("_class_name")
    if name not in CLASSES:
        raise WeightsError(
            f"config.json is of a {name}; {' and '.join(CLASSES)} can be imported."
            if name
            else "it needs diffusers' config.json beside it, with _class_name: the heads of an attention are only said there."
        )
    for key, allowed in FIXED.items():
        if key in config and config[key] not in allowed:
            shown = allowed[0] if len(allowed) == 1 else " or ".join(map(str, allowed))
            raise WeightsError(f"config.json has {key}={config[key]}; this network has {shown} and nothing else.")
    unknown = [
        k for k in config if not k.startswith("_") and k not in {*FIXED, *SHAPES, *SILENT} and config[k] is not None
    ]
    if unknown:
        raise WeightsError(f"config.json has {unknown[0]}={config[unknown[0]]}, a field that is not known here.")
    types = [t for key in ("down_block_types", "up_block_types") for t in config.get(key) or ()]
    if other := sorted({t for t in types if t not in BLOCK_TYPES}):
        raise WeightsError(f"config.json has blocks of type {', '.join(other)}; this network has none such.")
    if (
        name == PLAIN
        and config.get("resnet_time_scale_shift") == "scale_shift"
        and config.get("attn_norm_num_groups") is None
    ):
        raise WeightsError(
            "config.json has attn_norm_num_groups=None beside resnet_time_scale_shift=scale_shift: its middle attention has no "
            f"normalisation, ours has one of {GROUPS} groups."
        )
    return config


def _heads(config: Mapping[str, Any], level: int, levels: int, width: int) -> int:
    """Heads of the attentions of a level, from config.json.

    `attention_head_dim` is the channels of a head in a UNet2DModel, where null means one head, and the number of heads
    in a UNet2DConditionModel.
    """
    said = config.get("attention_head_dim", 8)
    try:
        if config["_class_name"] == PLAIN:
            heads, rest = (1, 0) if said is None else divmod(width, int(said))
        else:
            each = list(said) if isinstance(said, (list, tuple)) else [said] * levels
            heads, rest = int(each[level]), width % int(each[level])
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(f"config.json has attention_head_dim={said}, which cannot be read ({error}).") from None
    if rest or heads < 1:
        raise WeightsError(
            f"config.json has attention_head_dim={said}, which does not divide an attention of {width} channels."
        )
    return heads


def make_config(layout: UNetLayout, heads: Mapping[str, int], size: int) -> dict[str, Any]:
    """config.json of the UNet that computes what our network computes; `size`: height of the latent.

    Raises WeightsError for a network that diffusers cannot express.
    """
    widths, levels = [layout.width * m for m in layout.multipliers], len(layout.multipliers)
    if layout.multipliers[0] != 1:
        raise WeightsError(
            f"ldm.network.multipliers={layout.multipliers}: diffusers' first convolution is as wide as its first level, "
            "so only networks whose first multiplier is 1 can be exported to it. Use to=compvis."
        )
    config: dict[str, Any] = {
        "_class_name": PLAIN if layout.context_dim is None else TOKENS, "in_channels": layout.in_channels,
        "out_channels": layout.out_channels, "block_out_channels": widths, "layers_per_block": layout.blocks, "sample_size": size,
        "act_fn": "silu", "norm_num_groups": GROUPS, "norm_eps": EPS, "flip_sin_to_cos": True, "freq_shift": 0,
        "resnet_time_scale_shift": "scale_shift" if layout.scale_shift_norm else "default", "downsample_padding": 1,
        "mid_block_scale_factor": 1, "dropout": 0.0,
    }  # fmt: skip
    level_heads = {p.level: heads[p.official] for p in pieces(layout.blocks, layout.attended) if p.official in heads}
    if layout.context_dim is not None:
        if layout.resblock_updown:
            raise WeightsError(
                "ldm.network.resblock_updown=true: diffusers changes the size of a network with tokens by convolutions only. "
                "Use to=compvis."
            )
        return config | {
            "down_block_types": _types("CrossAttnDownBlock2D", "DownBlock2D", layout.attended),
            "up_block_types": _types("CrossAttnUpBlock2D", "UpBlock2D", layout.attended[::-1]),
            "mid_block_type": "UNetMidBlock2DCrossAttn", "cross_attention_dim": layout.context_dim,
            "attention_head_dim": [level_heads.get(level, 1) for level in range(levels)],
            "transformer_layers_per_block": layout.transformer_depth,
        }  # fmt: skip
    each = {widths[level] // n for level, n in level_heads.items()}
    one = set(level_heads.values()) == {1}
    if not one and len(each) > 1:
        raise WeightsError(
            f"ldm.network.heads gives attentions of {' and '.join(map(str, sorted(each)))} channels a head; UNet2DModel has one "
            "number for all. Networks with head_channels, or with one head, can be exported to it; or use to=compvis."
        )
    kind = "resnet" if layout.resblock_updown else "conv"
    down, up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if layout.resblock_updown else ("DownBlock2D", "UpBlock2D")
    )
    return config | {
        "down_block_types": _types("AttnDownBlock2D", down, layout.attended),
        "up_block_types": _types("AttnUpBlock2D", up, layout.attended[::-1]),
        "attention_head_dim": None if one else each.pop(), "attn_norm_num_groups": GROUPS if layout.scale_shift_norm else None,
        "time_embedding_type": "positional", "center_input_sample": False, "downsample_type": kind, "upsample_type": kind,
        "add_attention": True,
    }  # fmt: skip


def _types(with_attention: str, without: str, attended: list[bool]) -> list[str]:
    return [with_attention if a else without for a in attended]
