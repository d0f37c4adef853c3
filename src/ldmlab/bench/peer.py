"""diffusers' network of equal layers for one of ours, with our weights copied into it: the peer of `compare=unet`.

Unconditional networks become a UNet2DModel, those with tokens a UNet2DConditionModel (of unprojected, convolutional
transformers). diffusers is optional; only this file imports it.

Shape letters: B batch, C channels, D features, L tokens.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ldmlab.errors import UserError
from ldmlab.networks.attention import SelfAttention, SpatialTransformer
from ldmlab.networks.blocks import Downsample, ResBlock, Upsample
from ldmlab.networks.unet import UNet


def import_diffusers() -> Any:
    """The library, or a UserError with the command that installs it."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"compare=unet needs diffusers as the peer, and it cannot be imported ({error}). "
            "Install it with pip install 'diffusers>=0.42,<0.43', or leave compare=unet out."
        ) from None
    return diffusers


def peer_of(net: UNet, options: dict[str, Any], size: int) -> nn.Module:
    """diffusers' equal network with `net`'s weights. `options` are `net`'s own (UNet's arguments), `size` its latent's.

    Raises UserError without diffusers, and when the two do not have the same number of parameters (a version of
    diffusers whose layers are others).
    """
    diffusers = import_diffusers()
    multipliers, factors = options["multipliers"], options["attention_factors"]
    widths = tuple(options["width"] * m for m in multipliers)
    attended = [2**level in factors for level in range(len(multipliers))]
    with_tokens = options.get("context_dim") is not None
    kind = "CrossAttn{}Block2D" if with_tokens else "Attn{}Block2D"

    def blocks(way: str) -> tuple[str, ...]:
        return tuple(kind.format(way) if a else f"{way}Block2D" for a in attended)

    common = {
        "sample_size": size, "in_channels": options["in_channels"], "out_channels": options["out_channels"],
        "block_out_channels": widths, "layers_per_block": options["blocks"], "norm_num_groups": 32, "norm_eps": 1e-5,
        "down_block_types": blocks("Down"), "up_block_types": blocks("Up")[::-1],
    }  # fmt: skip
    if with_tokens:
        # diffusers calls the number of heads attention_head_dim here, and the features of a head there
        peer: nn.Module = diffusers.UNet2DConditionModel(
            **common, mid_block_type="UNetMidBlock2DCrossAttn", cross_attention_dim=options["context_dim"],
            attention_head_dim=tuple(_heads(options, width) for width in widths),
        )  # fmt: skip
    else:
        peer = diffusers.UNet2DModel(**common, attention_head_dim=options["head_channels"])
    mine, theirs = (sum(p.numel() for p in module.parameters()) for module in (net, peer))
    if mine != theirs:
        raise UserError(f"this diffusers' network has {theirs:,} parameters where ours has {mine:,}: it is no equal.")
    copy_weights(net, peer)
    return peer


def call_peer(peer: nn.Module, z_BCHW: Tensor, t_B: Tensor, tokens_BLD: Tensor | None) -> Tensor:
    """The peer's prediction, called as diffusers' users do."""
    given = () if tokens_BLD is None else (tokens_BLD,)
    return peer(z_BCHW, t_B, *given, return_dict=False)[0]


def peer_scheduler() -> Any:
    """diffusers' DDIM with the paper's betas, 50 steps (its step from t=500 goes to 480, as ours in `compare=unet`)."""
    scheduler = import_diffusers().DDIMScheduler(
        1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
    )
    scheduler.set_timesteps(50)
    return scheduler


def _heads(options: dict[str, Any], width: int) -> int:
    return options["heads"] if options.get("heads") is not None else width // options["head_channels"]


@torch.no_grad()
def copy_weights(net: UNet, peer: Any) -> None:
    """Our weights into diffusers' modules, layer by layer in the order of computation."""
    inputs: list[Any] = list(net.input_blocks)
    copies: list[tuple[nn.Module, nn.Module]] = [
        (net.time_embed[0], peer.time_embedding.linear_1), (net.time_embed[2], peer.time_embedding.linear_2),
        (inputs[0][0], peer.conv_in), (net.out[0], peer.conv_norm_out), (net.out[2], peer.conv_out),
    ]  # fmt: skip
    levels: list[Any] = [*inputs[1:], net.middle_block, *net.output_blocks]
    ours = chain.from_iterable(levels)
    for piece, other in zip(ours, _walk(peer), strict=True):
        copies += _layers(piece, other)
    for mine, theirs in copies:
        theirs.load_state_dict(mine.state_dict())


def _walk(peer: Any) -> Iterator[Any]:
    """diffusers' residual blocks, attentions and changes of size in the order of computation."""
    for block in (*peer.down_blocks, peer.mid_block, *peer.up_blocks):
        attentions = list(getattr(block, "attentions", []))
        for i, resnet in enumerate(block.resnets):
            if block is peer.mid_block and i == 1:
                yield attentions[0]
            yield resnet
            if block is not peer.mid_block and attentions:
                yield attentions[i]
        yield from getattr(block, "downsamplers", None) or []
        yield from getattr(block, "upsamplers", None) or []


def _layers(piece: nn.Module, other: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Pairs of layers with equal state dicts."""
    if isinstance(piece, ResBlock):
        pairs = [
            (piece.in_layers[0], other.norm1), (piece.in_layers[2], other.conv1),
            (piece.emb_layers[1], other.time_emb_proj),
            (piece.out_layers[0], other.norm2), (piece.out_layers[3], other.conv2),
        ]  # fmt: skip
        return pairs if other.conv_shortcut is None else [*pairs, (piece.skip_connection, other.conv_shortcut)]
    if isinstance(piece, SpatialTransformer):
        return [(piece, other)]  # the same names
    if isinstance(piece, SelfAttention):
        _split_qkv(piece, other)
        return [(piece.norm, other.group_norm)]
    if isinstance(piece, Downsample):
        return [(piece.op, other.conv)]
    assert isinstance(piece, Upsample)
    return [(piece.conv, other.conv)]


def _split_qkv(piece: SelfAttention, other: Any) -> None:
    """One convolution for q, k, v, ordered head by head → three linear layers."""
    channels = piece.proj_out.weight.shape[0]
    weight_N3DC = piece.qkv.weight.view(piece.heads, 3, channels // piece.heads, channels)
    assert piece.qkv.bias is not None and piece.proj_out.bias is not None
    bias_N3D = piece.qkv.bias.view(piece.heads, 3, channels // piece.heads)
    for i, layer in enumerate((other.to_q, other.to_k, other.to_v)):
        layer.weight.copy_(weight_N3DC[:, i].reshape(channels, channels))
        layer.bias.copy_(bias_N3D[:, i].flatten())
    other.to_out[0].weight.copy_(piece.proj_out.weight.squeeze(-1))
    other.to_out[0].bias.copy_(piece.proj_out.bias)
