"""Large images through a network piece by piece: overlapping tiles, cross-faded where they overlap, so memory depends on the tile.

An approximation: group norm and attention see a tile instead of the image. `python src/bench.py compare=tiles` reports the error.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldmlab.errors import ConfigError


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of the tiles along one side: `tile − overlap` apart, the last one flush with the end."""
    if size <= tile:
        return [0]
    stride = tile - overlap
    return [*range(0, size - tile, stride), size - tile]


def fade(size: int, begin: int, tile: int, overlap: int, total: int, device: torch.device | str = "cpu") -> Tensor:
    """Weight of a tile along one side, [size]: rises over the overlap with its left neighbour and falls over the right one's;
    no fading at the image's own border. Positive everywhere, so that the sum of weights never vanishes."""
    place = torch.arange(size, dtype=torch.float32, device=device) + 0.5
    rise = torch.ones_like(place) if begin == 0 else (place / overlap).clamp(max=1)
    fall = torch.ones_like(place) if begin + tile >= total else ((size - place) / overlap).clamp(max=1)
    return rise * fall


@torch.no_grad()
def tiled(function: Callable[[Tensor], Tensor], x_BCHW: Tensor, tile: int, overlap: int, factor: float) -> Tensor:
    """`function` over tiles of `tile` positions of `x`; its output has `factor` times as many a side (1/f to encode, f to decode).

    Raises ConfigError when the overlap does not leave room, or tile or overlap are no multiples of 1/factor.
    """
    unit = max(1, round(1 / factor))
    if not 0 < overlap <= tile // 2 or tile % unit or overlap % unit:
        raise ConfigError(
            f"tiles of {tile} with an overlap of {overlap}: the overlap must be at least 1 and at most half a tile, "
            f"and both multiples of {unit}."
        )
    height, width = x_BCHW.shape[2:]
    if height <= tile and width <= tile:
        return function(x_BCHW)
    out_BCHW = weight_11HW = None
    seam = round(overlap * factor)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            piece_BCHW = function(x_BCHW[:, :, top : top + tile, left : left + tile]).float()
            h, w = piece_BCHW.shape[2:]
            if out_BCHW is None or weight_11HW is None:
                shape = (round(height * factor), round(width * factor))
                out_BCHW = piece_BCHW.new_zeros(*piece_BCHW.shape[:2], *shape)
                weight_11HW = piece_BCHW.new_zeros(1, 1, *shape)
            device = piece_BCHW.device
            fade_H1, fade_W = (
                fade(h, top, tile, seam, height, device)[:, None],
                fade(w, left, tile, seam, width, device),
            )
            fade_HW = fade_H1 * fade_W
            place = (slice(None), slice(None), slice(round(top * factor), round(top * factor) + h),
                     slice(round(left * factor), round(left * factor) + w))  # fmt: skip
            out_BCHW[place] += piece_BCHW * fade_HW
            weight_11HW[place] += fade_HW
    assert out_BCHW is not None and weight_11HW is not None
    return out_BCHW / weight_11HW
