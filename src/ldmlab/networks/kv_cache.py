"""Tokens of a condition that stays, read once: what each cross-attention of a network makes of them alone.

A sampler evaluates the same network under the same condition in every step. Keys and values do not depend on z_t or t, so they are
made before the first step and handed on in the place of the tokens.

Shape letters: B batch, C channels, H W space, L tokens, N heads, D features.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class KVCache:
    """In the place of tokens [B, L, D]: for each cross-attention of *one* network its keys and values, each [B, N, L, D], or,
    of a single token, its whole output [B, 1, D], which then does not depend on the position."""

    of: dict[nn.Module, tuple[Tensor, Tensor] | Tensor]
    seen_BL: Tensor | None = None


@dataclass(frozen=True)
class MaskedTokens:
    """In the place of tokens [B, L, D]: the tokens, and which of them may be looked at (bool [B, L])."""

    tokens_BLD: Tensor
    seen_BL: Tensor


Tokens = Tensor | MaskedTokens | KVCache


class Condition(Protocol):
    """What a network reads of a condition (`conditioning.base.Cond` in full); each may be None."""

    @property
    def tokens_BLD(self) -> Tensor | KVCache | None: ...
    @property
    def concat_BCHW(self) -> Tensor | None: ...
    @property
    def vector_BD(self) -> Tensor | None: ...
    @property
    def seen_BL(self) -> Tensor | None: ...


def tokens_of(cond: Condition) -> Tokens | None:
    """What the cross-attentions of a network are given of a condition; None without tokens."""
    tokens, seen_BL = cond.tokens_BLD, cond.seen_BL
    return tokens if seen_BL is None or not isinstance(tokens, Tensor) else MaskedTokens(tokens, seen_BL)


@dataclass(frozen=True)
class Prepared:
    """A condition whose tokens one network has read."""

    tokens_BLD: KVCache
    concat_BCHW: Tensor | None
    vector_BD: Tensor | None
    seen_BL: None = None  # the cache says it
