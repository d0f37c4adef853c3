"""The transformer that reads texts and layouts (`networks.token_transformer`) in the layouts of others.

    official (x_transformer.py `TransformerWrapper`)   diffusers' LDMBertModel            ours
    transformer.<name>                                 model.…, see BLOCK and SINGLE      transformer.<name>
    transformer.to_logits.{weight,bias}                to_logits.{weight,bias}            none: kept aside

`to_logits` would predict tokens and takes part in nothing (docs/paper.md#text-and-layout), but both classes have it and load
strictly. An imported one is kept beside the weights and comes back unchanged; one that never was is written as zeros.

Pure functions from names to tensors, by the names of a conditioner; a tensor is never changed. diffusers is not imported.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop.compvis import some
from ldmlab.networks.token_transformer import HEAD_CHANNELS, HEADS

OURS = "transformer."
LOGITS = "to_logits."
TABLE, POSITIONS = f"{OURS}token_emb.weight", f"{OURS}pos_emb.emb.weight"

SINGLE = {
    "token_emb": "model.embed_tokens",
    "pos_emb.emb": "model.embed_positions",
    "norm": "model.layer_norm",
    "to_logits": "to_logits",
}
BLOCK = {
    "{a}.0": "self_attn_layer_norm", "{a}.1.to_q": "self_attn.q_proj", "{a}.1.to_k": "self_attn.k_proj",
    "{a}.1.to_v": "self_attn.v_proj", "{a}.1.to_out": "self_attn.out_proj", "{m}.0": "final_layer_norm",
    "{m}.1.net.0.0": "fc1", "{m}.1.net.2": "fc2",
}  # fmt: skip
"""Layers of one block, in our numbering of attention {a} and MLP {m} (0 and 1 of the first block), and diffusers' names for them."""

CLASS = "LDMBertModel"
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("ldmbert",), "activation_function": ("gelu",), "head_dim": (HEAD_CHANNELS,), "scale_embedding": (False,),
}  # fmt: skip
"""Values of config.json with which their transformer computes what ours does; the first is what a missing key means."""


def is_token_transformer(conditioner: Mapping[str, Tensor]) -> bool:
    """Whether a conditioner's tensors are those of one such transformer."""
    return TABLE in conditioner


def heads_of(conditioner: Mapping[str, Tensor]) -> int:
    """Heads of its attentions, which have 64 features each."""
    return int(conditioner[f"{OURS}attn_layers.layers.0.1.to_q.weight"].shape[0]) // HEAD_CHANNELS


def depth_of(conditioner: Mapping[str, Tensor]) -> int:
    """Blocks of self-attention and MLP."""
    return _depth(conditioner, f"{OURS}attn_layers.layers.") // 2


def with_logits(conditioner: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of the official class: with the unused head, as it was imported or as zeros. Other conditioners as they are."""
    if not is_token_transformer(conditioner):
        return dict(conditioner)
    tokens, dim = conditioner[TABLE].shape
    zeros = {f"{OURS}{LOGITS}weight": torch.zeros(tokens, dim), f"{OURS}{LOGITS}bias": torch.zeros(tokens)}
    return {**conditioner, **{name: unused.get(name, tensor) for name, tensor in zeros.items()}}


def check_official(conditioner: Mapping[str, Tensor]) -> None:
    """WeightsError for a transformer that `BERTEmbedder` has no option for."""
    if is_token_transformer(conditioner) and heads_of(conditioner) != HEADS:
        raise WeightsError(
            f"cond.conditioner.heads={heads_of(conditioner)}: the official BERTEmbedder has {HEADS} heads of {HEAD_CHANNELS} "
            f"features and no option for others. Networks with cond.conditioner.heads={HEADS} can be exported; or use to=diffusers."
        )


# ---- LDMBertModel --------------------------------------------------------------------------------------------------------


def to_bert(conditioner: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names of a token transformer."""
    whole = with_logits(conditioner, unused)
    table = _layers(depth_of(whole))
    return {f"{table[layer]}.{kind}": tensor for (layer, kind), tensor in _split(whole)}


def from_bert(theirs: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the conditioner's tensors, the unused head), both by a conditioner's names.

    Raises WeightsError for a name that no LDMBertModel has, and for a config.json of another network.
    """
    check_config(config, theirs)
    back = {b: a for a, b in _layers(_depth(theirs, "model.layers.")).items()}
    if strange := [f"{layer}.{kind}" for (layer, kind), _ in _split(theirs) if layer not in back]:
        raise WeightsError(f"bert/: {some(strange)}: {CLASS} has no such name.")
    ours = {f"{back[layer]}.{kind}": tensor for (layer, kind), tensor in _split(theirs)}
    unused = {name: tensor for name, tensor in ours.items() if name.startswith(OURS + LOGITS)}
    return {name: tensor for name, tensor in ours.items() if name not in unused}, unused


def check_config(config: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> None:
    """WeightsError naming the field of bert/config.json that computes something else."""
    for key, allowed in FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise WeightsError(
                f"bert/config.json has {key}={config[key]}; this network has {allowed[0]} and nothing else."
            )
    first = theirs.get("model.layers.0.self_attn.q_proj.weight")
    heads = config.get("encoder_attention_heads", HEADS)
    if first is not None and (not isinstance(heads, int) or first.shape[0] != heads * HEAD_CHANNELS):
        raise WeightsError(
            f"bert/config.json has encoder_attention_heads={heads} of {HEAD_CHANNELS} features, and its weights have "
            f"{first.shape[0]} features in all."
        )


def make_config(conditioner: Mapping[str, Tensor]) -> dict[str, Any]:
    """config.json of the LDMBertModel that computes what our transformer computes."""
    tokens, dim = conditioner[TABLE].shape
    return {
        "architectures": [CLASS], "model_type": "ldmbert", "vocab_size": tokens, "d_model": dim,
        "max_position_embeddings": conditioner[POSITIONS].shape[0],
        "encoder_layers": depth_of(conditioner), "encoder_ffn_dim": 4 * dim,
        "encoder_attention_heads": heads_of(conditioner), "head_dim": HEAD_CHANNELS, "activation_function": "gelu",
        "scale_embedding": False, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": 0,
    }  # fmt: skip


def _layers(depth: int) -> dict[str, str]:
    """Every layer with weights: our name → theirs."""
    table = {OURS + ours: theirs for ours, theirs in SINGLE.items()}
    for block in range(depth):
        places = {"a": 2 * block, "m": 2 * block + 1}
        table |= {
            f"{OURS}attn_layers.layers.{a.format(**places)}": f"model.layers.{block}.{b}" for a, b in BLOCK.items()
        }
    return table


def _depth(names: Mapping[str, Tensor], prefix: str) -> int:
    found = [name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)]
    return 1 + max((int(index) for index in found if index.isdigit()), default=-1)


def _split(tensors: Mapping[str, Tensor]) -> list[tuple[tuple[str, str], Tensor]]:
    """((layer, weight or bias), tensor) of each."""
    pairs = [(name.rpartition("."), tensor) for name, tensor in tensors.items()]
    return [((layer, kind), tensor) for (layer, _, kind), tensor in pairs]
