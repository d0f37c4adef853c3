"""Attention over the positions of a feature map: plain, and with tokens of a condition.

Module names and weight shapes are those of CompVis/latent-diffusion (ldm/modules/attention.py and the AttentionBlock of
openaimodel.py), so that importing an official checkpoint is renaming only.

Shape letters: B batch, C channels, H W space, L positions or tokens, N heads, D features of a head or token.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldmlab.networks.blocks import OFFICIAL, Grouping, Norm, TokenNorm, zeroed
from ldmlab.networks.convolution import has_amx, positions
from ldmlab.networks.kv_cache import Condition, KVCache, MaskedTokens, Prepared, Tokens

FEW = 64  # positions up to which keeping the weights of all pairs costs little memory
MANY = 32  # positions for each feature of a head, from which on the products cost less than writing their result


def attend(q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, seen_BL: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v per head, [B, N, L, D]; the kernel is chosen by device, dtype, length and head size.

    seen_BL: bool, the keys that count, at least one an example; None: all.

    PyTorch's fused kernel everywhere except for low precision on a CPU (`bench.py compare=attention`):

    - training: its backward pass is slow there. Up to 64 positions two matrix products are 1.2 to 5.6 times as fast and
      keep their L² weights; with more positions they are up to 2.5 times as fast and make the weights again, but not
      where there are far more positions than features, where the fused kernel is as fast and lighter.
    - nothing trained and more than 64 positions: two products are up to 3.7 times as fast. A CPU that multiplies tiles
      of bfloat16 (AMX) has the fused kernel 1.0 to 1.7 times as fast.

    In float32 at head sizes from 384 up, training on a CPU would gain 4 to 14 % by two products too and pay with L²
    numbers a head: not taken. Every way sums the softmax in float32 or wider.
    """
    if seen_BL is not None:
        return F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD, attn_mask=seen_BL[:, None, None, :])
    low = q_BNLD.device.type == "cpu" and q_BNLD.dtype in (torch.bfloat16, torch.float16)
    if not low:
        return F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
    few = k_BNLD.shape[2] <= FEW
    if not (torch.is_grad_enabled() and q_BNLD.requires_grad):
        fused = few or (q_BNLD.dtype == torch.bfloat16 and has_amx())
        return (F.scaled_dot_product_attention if fused else two_products)(q_BNLD, k_BNLD, v_BNLD)
    if few:
        return two_products(q_BNLD, k_BNLD, v_BNLD)
    if k_BNLD.shape[2] >= MANY * q_BNLD.shape[3]:
        return F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
    return recomputed(q_BNLD, k_BNLD, v_BNLD)


def two_products(q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor) -> Tensor:
    """The same, with the weights of all pairs of positions written out."""
    # q and k are scaled by D^-1/4 each: the product then cannot overflow in half precision (official comment agrees).
    scale = q_BNLD.shape[-1] ** -0.25
    score_BNLM = (q_BNLD * scale) @ (k_BNLD * scale).transpose(-1, -2)
    return score_BNLM.softmax(dim=-1) @ v_BNLD  # the kernel sums in float32 and keeps only its result


def recomputed(q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor) -> Tensor:
    """`two_products` for training: the L² weights are made again in the backward pass instead of kept for it."""
    return checkpoint(two_products, q_BNLD, k_BNLD, v_BNLD, use_reentrant=False, preserve_rng_state=False)


class SelfAttention(nn.Module):
    """Self-attention over all positions of a feature map, with residual: the block of networks without tokens.

    The 3C outputs of `qkv` are ordered head by head, each head's q, k, v side by side ("legacy" order of ADM).
    """

    one_graph: ClassVar[bool] = True

    def __init__(self, channels: int, heads: int, grouping: Grouping = OFFICIAL):
        super().__init__()
        self.heads = heads
        self.norm = Norm(channels, 1e-5, grouping)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, h_BCHW: Tensor, emb_BD: Tensor, tokens_BLD: Tensor | None) -> Tensor:
        """h + proj(attention(norm(h))); embedding and tokens are not used."""
        # The 1x1 convolutions as linear maps over positions: then the features of a head lie side by side, without which
        # PyTorch's fused attention falls back to writing out the L×L weights, and there is nothing to transpose.
        x_BLC = positions(self.norm(h_BCHW))
        qkv_BLC = F.linear(x_BLC, self.qkv.weight.squeeze(-1), self.qkv.bias)
        q_BNLD, k_BNLD, v_BNLD = qkv_BLC.unflatten(-1, (self.heads, 3, -1)).transpose(1, 2).unbind(3)
        out_BLC = attend(q_BNLD, k_BNLD, v_BNLD).transpose(1, 2).flatten(2)
        out_BLC = F.linear(out_BLC, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return h_BCHW + out_BLC.transpose(1, 2).unflatten(2, h_BCHW.shape[2:])


class CrossAttention(nn.Module):
    """Multi-head attention from positions to tokens, or to themselves without `context_BLD`; q, k, v have no bias."""

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Identity())  # official: Dropout(0), which holds no weights

    def forward(self, x_BLD: Tensor, context_BLD: Tensor | None = None) -> Tensor:
        """[B, L, dim] → [B, L, dim]."""
        b, length, dim = x_BLD.shape
        source_BLD = x_BLD if context_BLD is None else context_BLD
        if source_BLD.shape[1] == 1 and not torch.is_grad_enabled():
            # A softmax over one token is exactly 1, so the output is that token's value at each position. In training q
            # and k are still evaluated: a parameter without a gradient would stop a distributed wrapper and escape
            # weight decay.
            return self.to_out(self.to_v(source_BLD)).expand(b, length, dim)
        return self.read(x_BLD, self._split(self.to_k(source_BLD)), self._split(self.to_v(source_BLD)))

    def read(self, x_BLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, seen_BL: Tensor | None = None) -> Tensor:
        """The answer to `x_BLD` from ready keys and values; seen_BL: those that count."""
        q_BNLD = self._split(self.to_q(x_BLD))
        return self.to_out(attend(q_BNLD, k_BNLD, v_BNLD, seen_BL).transpose(1, 2).reshape(x_BLD.shape))

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TokenAttention(CrossAttention):
    """Cross-attention to the tokens of a condition, which may have been read before (`prepared`)."""

    def forward(self, x_BLD: Tensor, context_BLD: Tokens | None = None) -> Tensor:
        """[B, L, dim] and tokens [B, M, context_dim], or their keys, → [B, L, dim]."""
        if isinstance(context_BLD, MaskedTokens):
            tokens_BLD = context_BLD.tokens_BLD
            k_BNLD, v_BNLD = self._split(self.to_k(tokens_BLD)), self._split(self.to_v(tokens_BLD))
            return self.read(x_BLD, k_BNLD, v_BNLD, context_BLD.seen_BL)
        if not isinstance(context_BLD, KVCache):
            return super().forward(x_BLD, context_BLD)
        kept = context_BLD.of[self]
        return kept.expand(x_BLD.shape) if isinstance(kept, Tensor) else self.read(x_BLD, *kept, context_BLD.seen_BL)

    def keep(self, tokens_BLD: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """What `KVCache` holds for this attention."""
        if tokens_BLD.shape[1] == 1:  # as in CrossAttention.forward
            return self.to_out(self.to_v(tokens_BLD))
        return self._split(self.to_k(tokens_BLD)), self._split(self.to_v(tokens_BLD))


def prepared(network: nn.Module, cond: Condition) -> Condition:
    """The condition with its tokens read by every cross-attention of this network; without tokens as it is.

    For many calls under one condition with weights that stay. Only this network understands the result.
    """
    tokens_BLD = cond.tokens_BLD
    if tokens_BLD is None or isinstance(tokens_BLD, KVCache):
        return cond
    readers = [module for module in network.modules() if isinstance(module, TokenAttention)]
    kept = KVCache({reader: reader.keep(tokens_BLD) for reader in readers}, cond.seen_BL)
    return Prepared(kept, cond.concat_BCHW, cond.vector_BD)


class GEGLU(nn.Module):
    """Linear map to 2·inner features, one half gated by the GELU of the other (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, dim] → [B, L, inner]."""
        x_BLD, gate_BLD = self.proj(x_BLD).chunk(2, dim=-1)
        return x_BLD * F.gelu(gate_BLD)


class FeedForward(nn.Module):
    """Gated MLP of 4 times the width."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, dim] → [B, L, dim]."""
        return self.net(x_BLD)


class TransformerBlock(nn.Module):
    """Self-attention → cross-attention → gated MLP, each behind a LayerNorm and with a residual.

    The order is the released code's; Table 16 prints another one (docs/paper.md#the-transformer-block).
    """

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.attn1 = CrossAttention(dim, heads, context_dim=dim)
        self.ff = FeedForward(dim)
        self.attn2 = TokenAttention(dim, heads, context_dim)
        self.norm1 = TokenNorm(dim)
        self.norm2 = TokenNorm(dim)
        self.norm3 = TokenNorm(dim)

    def forward(self, x_BLD: Tensor, tokens_BLD: Tokens) -> Tensor:
        """[B, L, dim] and tokens [B, M, context_dim], or their keys, → [B, L, dim]."""
        x_BLD = x_BLD + self.attn1(self.norm1(x_BLD))
        x_BLD = x_BLD + self.attn2(self.norm2(x_BLD), tokens_BLD)
        return x_BLD + self.ff(self.norm3(x_BLD))


class SpatialTransformer(nn.Module):
    """Feature map → positions as a sequence → `depth` transformer blocks → feature map, with an outer residual.

    Its GroupNorm has eps 1e-6 where the residual blocks have 1e-5, as in the official code.
    """

    one_graph: ClassVar[bool] = True

    def __init__(self, channels: int, heads: int, context_dim: int, depth: int, grouping: Grouping = OFFICIAL):
        super().__init__()
        self.norm = Norm(channels, 1e-6, grouping)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, context_dim) for _ in range(depth))
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, h_BCHW: Tensor, emb_BD: Tensor, tokens_BLD: Tokens | None) -> Tensor:
        """h + proj_out(blocks(proj_in(norm(h)), tokens)); the embedding is not used.

        Raises ValueError without tokens: falling back to self-attention, as the official code does, would hide a lost
        condition.
        """
        if tokens_BLD is None:
            raise ValueError("this network was built for tokens (context_dim), but the condition has none")
        height, width = h_BCHW.shape[-2:]
        x_BLC = self.proj_in(self.norm(h_BCHW)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            x_BLC = block(x_BLC, tokens_BLD)
        return h_BCHW + self.proj_out(x_BLC.transpose(1, 2).unflatten(2, (height, width)))
