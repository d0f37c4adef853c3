"""What a condition is, and what a conditioner promises.

Shape letters: B batch, L tokens, D features, C channels, H W space.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cond:
    """A batch of conditions in the three forms a network understands; each may be None.

    tokens_BLD: for cross-attention. concat_BCHW: extra input channels, at the latent's size. vector_BD: added to the
    time embedding. seen_BL: bool, the tokens that cross-attention may look at, at least one an example; None: all of them.
    """

    tokens_BLD: Tensor | None = None
    concat_BCHW: Tensor | None = None
    vector_BD: Tensor | None = None
    seen_BL: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether there is no condition."""
        return self.tokens_BLD is None and self.concat_BCHW is None and self.vector_BD is None

    def cat(self, other: "Cond") -> "Cond":
        """The two batches one after the other, along B."""
        return self._with(other, lambda mine, theirs: torch.cat([mine, theirs]))

    def select(self, mask_B: Tensor, other: "Cond") -> "Cond":
        """`other` where `mask_B` (bool) is true, this one elsewhere, per example."""

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask_B.view(-1, *[1] * (mine.dim() - 1)), theirs, mine)

        return self._with(other, choose)

    def repeat(self, n: int) -> "Cond":
        """Each example n times in a row, along B."""
        return Cond(*(None if part is None else part.repeat_interleave(n, dim=0) for part in self._parts()))

    def towards(self, other: "Cond", share_B: Tensor) -> "Cond":
        """Between the two on a straight line, each example its share of the way; seen is what either lets see."""

        def between(mine: Tensor, theirs: Tensor) -> Tensor:
            if mine.dtype == torch.bool:
                return mine | theirs
            return torch.lerp(mine, theirs, share_B.to(mine).view(-1, *[1] * (mine.dim() - 1)))

        return self._with(other, between)

    def join(self, other: "Cond") -> "Cond":
        """Both conditions for the same examples: tokens along L, concat along C, vectors added."""
        return Cond(
            _both(self.tokens_BLD, other.tokens_BLD, lambda a, b: torch.cat([a, b], dim=1)),
            _both(self.concat_BCHW, other.concat_BCHW, lambda a, b: torch.cat([a, b], dim=1)),
            _both(self.vector_BD, other.vector_BD, torch.add),
            self._both_seen(other),
        )

    def _both_seen(self, other: "Cond") -> Tensor | None:
        """Of the tokens of both, where one of them hides any."""
        if self.seen_BL is None and other.seen_BL is None:
            return None
        seen = [part.seen_BL if part.seen_BL is not None else _all(part.tokens_BLD) for part in (self, other)]
        return torch.cat([seen_BL for seen_BL in seen if seen_BL is not None], dim=1)

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.tokens_BLD, self.concat_BCHW, self.vector_BD, self.seen_BL

    def _with(self, other: "Cond", combine: Callable[[Tensor, Tensor], Tensor]) -> "Cond":
        mine, theirs = self._parts(), other._parts()
        names = ("tokens", "concat", "vector", "a token mask")
        differing = [n for n, a, b in zip(names, mine, theirs, strict=True) if (a is None) != (b is None)]
        if differing:
            raise ValueError(f"two conditions of different kinds: only one of them has {', '.join(differing)}")
        return Cond(*(None if a is None or b is None else combine(a, b) for a, b in zip(mine, theirs, strict=True)))


def _both(mine: Tensor | None, theirs: Tensor | None, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    if mine is None or theirs is None:
        return theirs if mine is None else mine
    return combine(mine, theirs)


def _all(tokens_BLD: Tensor | None) -> Tensor | None:
    return None if tokens_BLD is None else torch.ones(tokens_BLD.shape[:2], dtype=torch.bool, device=tokens_BLD.device)


Size = tuple[int, int]
"""Height and width of the latents, which a concatenated condition has too."""


class Conditioner(Protocol):
    """What each conditioner (an nn.Module) offers.

    needs: batch fields that `forward` reads. context_dim, vector_dim: features of tokens and vector, None without them.
    concat_channels: channels of the concatenated condition, 0 without one.
    """

    needs: tuple[str, ...]
    context_dim: int | None
    concat_channels: int
    vector_dim: int | None

    def __call__(self, batch: dict[str, Any]) -> Cond:
        """The condition of each example of a batch: a tensor [B, ...] or a list of B per field (`ConditionSource.batch`)."""
        ...

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """The null condition ("no condition"), in the same form as `forward`'s, for latents of `size`."""
        ...


# ---- what a conditioner is built from ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What follows from the data and the first stage. A conditioner's constructor names those that it wants.

    vocabulary: per field of the data set, how many numbers a label, class map or box class can be; None for fields without
    such numbers. first_stage: image [B, 3, H, W] in [-1, 1] → standardised latents [B, c, h, w], without gradients;
    None where there is no trained first stage (plans, costs). trained_tokenizer: folder of the tokenizer that was trained on the
    captions; None where there is none yet (plans, costs). image_channels: 3 of RGB.
    """

    n_classes: int
    class_names: tuple[str, ...]
    latent_shape: tuple[int, int, int]
    resolution: int
    vocabulary: dict[str, int | None]
    first_stage: Callable[[Tensor], Tensor] | None = None
    trained_tokenizer: Path | None = None
    image_channels: int = 3


FACTS = tuple(field.name for field in fields(Facts))


def facts_wanted(part: Any) -> tuple[str, ...]:
    """The facts that a constructor names among its parameters; of a `partial` also those of the parts in its arguments."""
    if isinstance(part, list):
        return tuple(dict.fromkeys(name for each in part for name in facts_wanted(each)))
    if isinstance(part, partial):
        inner = facts_wanted(list(part.keywords.values()))
        return tuple(dict.fromkeys([*(n for n in facts_wanted(part.func) if n not in part.keywords), *inner]))
    if not callable(part) or isinstance(part, nn.Module):
        return ()
    return tuple(name for name in inspect.signature(part).parameters if name in FACTS)


def given(signature: inspect.Signature, facts: Facts) -> dict[str, Any]:
    """The facts that a signature names."""
    return {name: getattr(facts, name) for name in signature.parameters if name in FACTS}


def built(part: Any, facts: Facts) -> Any:
    """A part made from its `partial`, with the facts that its constructor names; so are the parts in its arguments.

    What is no partial comes back as it is.
    """
    if isinstance(part, list):
        return [built(each, facts) for each in part]
    if not isinstance(part, partial):
        return part
    options = {name: built(value, facts) for name, value in part.keywords.items()}
    return part.func(**{**given(inspect.signature(part.func), facts), **options})
