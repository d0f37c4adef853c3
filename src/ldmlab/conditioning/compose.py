"""Several conditioners as one; none at all is the unconditional model.

Shape letters: B batch, L tokens, D features, C channels, H W space.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from ldmlab.conditioning.base import Cond, Conditioner, Size
from ldmlab.errors import ConfigError


class Compose(nn.Module):
    """Conditioners side by side: tokens concatenate along L, concatenated inputs along C, vectors add.

    Args:
        parts: conditioners; [] is the unconditional model (`cond=none`). An example that trains without its condition
            loses all of them together.

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

    def _conditioners(self) -> Iterator[Conditioner]:
        return cast(Iterator[Conditioner], iter(self.parts))


def common(widths: list[Any], what: str) -> int | None:
    """The one width that all parts with this kind of condition share, None without any."""
    given = {width for width in widths if width is not None}
    if len(given) > 1:
        raise ConfigError(
            f"cond.conditioner.parts have {what} of different widths, {sorted(given)}, and a network takes one. "
            "Set their dim options to the same number."
        )
    return given.pop() if given else None
