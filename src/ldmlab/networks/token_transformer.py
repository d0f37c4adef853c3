"""The transformer that the paper trains along with the denoiser, to read a prompt or a layout as a sequence of token numbers.

Module names and weight shapes are those of CompVis/latent-diffusion (`TransformerWrapper` over `Encoder` in
ldm/modules/x_transformer.py), so that reading an official checkpoint is renaming only: `cond_stage_model.transformer.*`. The head
that would predict tokens (`to_logits`) is in those files and computes nothing there; it is left out here.

Shape letters: B batch, L tokens, N heads, D features.
"""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from ldmlab.networks.attention import attend
from ldmlab.networks.blocks import TokenNorm

HEADS, HEAD_CHANNELS = 8, 64  # of every published encoder: x_transformer.py's defaults


class TokenTransformer(nn.Module):
    """Token numbers [B, L] → features [B, L, dim]: learned positions, then `depth` pre-norm blocks of self-attention and MLP.

    Args:
        vocab_size: rows of the token table.
        length: L at most.
        dim: features of a token; the attention inside has heads · 64, whatever `dim` is.

    Text-to-image: 77 tokens, dim 1280, depth 32 (543 M parameters); layouts: 92 tokens, dim 512, depth 16 (docs/paper.md#conditioning).
    """

    def __init__(self, vocab_size: int, length: int, dim: int, depth: int, heads: int = HEADS):
        super().__init__()
        self.token_emb = nn.Embedding(vocab_size, dim)
        self.pos_emb = Positions(length, dim)
        self.attn_layers = Layers(dim, depth, heads)
        self.norm = TokenNorm(dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def forward(self, id_BL: Tensor, seen_BL: Tensor | None = None) -> Tensor:
        """Features [B, L, dim]. seen_BL: bool, the tokens that others may look at; None: all, padding too, as published."""
        h_BLD = self.token_emb(id_BL) + self.pos_emb(id_BL.shape[1])
        return self.norm(self.attn_layers(h_BLD, seen_BL))


class Positions(nn.Module):
    """A learned vector for each place."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.emb = nn.Embedding(length, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, length: int) -> Tensor:
        """[L, dim] of the first `length` places."""
        return self.emb.weight[:length]


class Layers(nn.Module):
    """Self-attention and MLP in turn, each as a pair (norm, block) with a residual around it."""

    def __init__(self, dim: int, depth: int, heads: int):
        super().__init__()
        blocks = [block for _ in range(depth) for block in (Attention(dim, heads), FeedForward(dim))]
        self.layers = nn.ModuleList(nn.ModuleList([TokenNorm(dim), block]) for block in blocks)

    def forward(self, h_BLD: Tensor, seen_BL: Tensor | None) -> Tensor:
        for pair in self.layers:
            norm, block = cast(Iterable[nn.Module], pair)
            h_BLD = h_BLD + block(norm(h_BLD), seen_BL)
        return h_BLD


class Attention(nn.Module):
    """Self-attention with heads of 64 features; q, k, v without bias."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, inner = heads, heads * HEAD_CHANNELS
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x_BLD: Tensor, seen_BL: Tensor | None) -> Tensor:
        q_BNLD, k_BNLD, v_BNLD = (
            to(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(attend(q_BNLD, k_BNLD, v_BNLD, seen_BL).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """MLP of 4 times the width with GELU."""

    def __init__(self, dim: int):
        super().__init__()
        up = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
        self.net = nn.Sequential(up, nn.Identity(), nn.Linear(4 * dim, dim))  # official: Dropout(0) in the middle

    def forward(self, x_BLD: Tensor, seen_BL: Tensor | None) -> Tensor:
        return self.net(x_BLD)
