"""Several conditioners as one; none at all is the unconditional model.

Shape letters: B batch, L tokens, D features, C channels, H W space.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond, Conditioner, Size
from ldmlab.errors import ConfigError


class Compose(nn.Module):
    """Conditioners side by side: tokens concatenate along L, concatenated inputs along C, vectors add.

    Args:
        parts: conditioners; [] is the unconditional model (`cond=none`). An example that trains without its condition
            loses all of them together, or with `dropped` each by itself.

    Raises ConfigError when two parts have tokens, or vectors, of different widths.
    """

    def __init__(self, parts: Sequence[Conditioner]):
        super().__init__()
        self.parts = nn.ModuleList(cast(Sequence[nn.Module], parts))
        self.needs: tuple[str, ...] = tuple(dict.fromkeys(field for part in parts for field in part.needs))
        self.context_dim: int | None = common([part.context_dim for part in parts], "tokens")
        self.vector_dim: int | None = common([part.vector_dim for part in parts], "vectors")
        self.concat_channels: int = sum(int(part.concat_channels) for part in parts)

    def forward(self, batch: dict[str, Any]) -> Cond:
        """The joined conditions of a batch."""
        cond = Cond()
        for part in self._conditioners():
            cond = cond.join(part(batch))
        return cond

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """The joined null conditions."""
        cond = Cond()
        for part in self._conditioners():
            cond = cond.join(part.null(batch_size, size, device))
        return cond

    def dropped(self, batch: dict[str, Any], drop_BP: Tensor, size: Size) -> Cond:
        """The joined conditions of a batch, of each part p the null one where `drop_BP` (bool) is true."""
        cond = Cond()
        for part, drop_B in zip(self._conditioners(), drop_BP.unbind(1), strict=True):
            cond = cond.join(part(batch).select(drop_B, part.null(len(drop_B), size, drop_B.device)))
        return cond

    def _conditioners(self) -> Iterator[Conditioner]:
        return cast(Iterator[Conditioner], iter(self.parts))


def common(widths: list[Any], what: str) -> int | None:
    """The one width that all parts with this kind of condition share, None without any."""
    given = {width for width in widths if width is not None}
    if len(given) > 1:
        raise ConfigError(
            f"cond.conditioner.parts have {what} of different widths, {sorted(given)}, and a network takes one. "
            "Set their dim options to the same number; of cond=[…,…] they are cond.parts.<name>.conditioner.dim."
        )
    return given.pop() if given else None


def parts_of(conditioner: Any) -> list[Any]:
    """The conditioners that one is made of; itself where it is one."""
    return (
        [each for part in conditioner.parts for each in parts_of(part)]
        if isinstance(conditioner, Compose)
        else [conditioner]
    )


# ---- what some conditioners can do beside being a condition ---------------------------------------------------------------


def completed(conditioner: Any, image_BCHW: Tensor, batch: dict[str, Any]) -> Tensor:
    """Generated images, [B, 3, H, W] in [-1, 1], with what the condition already shows of them (`Inpaint.complete`)."""
    for part in parts_of(conditioner):
        if hasattr(part, "complete"):
            image_BCHW = part.complete(image_BCHW, batch)
    return image_BCHW


def pictured(conditioner: Any, batch: dict[str, Any]) -> Tensor | None:
    """Conditions to look at as the conditioner sees them, uint8 [B, H, W, 3]; None where the data's own field shows it."""
    own = [part.picture(batch) for part in parts_of(conditioner) if hasattr(part, "picture")]
    return own[0] if own else None


def fit_to(conditioner: Any, size: Size) -> None:
    """From now on the conditions are those of latents of this height and width (`size` of each part), whatever it was trained at."""
    for part in parts_of(conditioner):
        if hasattr(part, "size"):
            part.size = size
