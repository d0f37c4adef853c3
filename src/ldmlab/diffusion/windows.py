"""Latents larger than a network was trained at: overlapping windows go through it one after the other, and where they overlap their
answers are averaged. What comes back is a denoise callable, so every sampler and every guidance works as without windows.

Source: the patch mode of the released code (`split_input_params` of ldm/models/diffusion/ddpm.py; docs/paper.md#larger-images).

Shape letters: B batch, C channels, H W space, h w of a window.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ldmlab.autoencoders.tiles import starts
from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction

Weights = Literal["official", "mean"]
LEAST, MOST = 0.01, 0.5  # official weights are kept between these


@dataclass(frozen=True)
class Window:
    """One window's place: rows and columns of the latent."""

    rows: slice
    columns: slice

    def of(self, x_BCHW: Tensor) -> Tensor:
        """What lies in it, [B, C, h, w]; a view."""
        return x_BCHW[:, :, self.rows, self.columns]

    def of_condition(self, cond: Any) -> Any:
        """The condition of this window: maps are cut, tokens and vectors stay."""
        if cond.concat_BCHW is None:
            return cond
        return dataclasses.replace(cond, concat_BCHW=self.of(cond.concat_BCHW))


@dataclass(frozen=True)
class Windows:
    """Square windows over a latent.

    side: positions a side; a side of the latent that is shorter has windows of its own length. overlap: positions that neighbours
    share, below `side`; the last window lies flush with the end and may share more.
    weights: "official" grows with the distance to the window's border (`border_weights`), "mean" is 1.

    Raises ValueError for an overlap that is not below the side.
    """

    side: int
    overlap: int
    weights: Weights = "official"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.side:
            raise ValueError(f"windows of {self.side} cannot overlap by {self.overlap}: 0 … {self.side - 1}.")

    def places(self, height: int, width: int) -> list[Window]:
        """Row by row; every position is in at least one."""
        return [
            Window(slice(top, top + self.side), slice(left, left + self.side))
            for top in starts(height, self.side, self.overlap)
            for left in starts(width, self.side, self.overlap)
        ]

    def averaged(self, answer: Callable[[Window], Sequence[Tensor]], height: int, width: int) -> list[Tensor]:
        """`answer(window)` gives one or several tensors [B, C, h, w]; these over the whole latent, averaged with the weights."""
        totals: list[Tensor] = []
        share_HW: Tensor | None = None
        weight_hw: Tensor | None = None  # of every window: all have one size
        for window, parts in ((window, answer(window)) for window in self.places(height, width)):
            if share_HW is None or weight_hw is None:
                h, w = parts[0].shape[2:]
                weight_hw = self._weight(h, w, parts[0].device).to(parts[0].dtype)
                totals = [part.new_zeros(*part.shape[:2], height, width) for part in parts]
                share_HW = parts[0].new_zeros(height, width)
            for total, part in zip(totals, parts, strict=True):
                window.of(total).add_(part * weight_hw)
            share_HW[window.rows, window.columns] += weight_hw
        assert share_HW is not None
        return [total / share_HW for total in totals]

    def _weight(self, h: int, w: int, device: torch.device) -> Tensor:
        return border_weights(h, w, device) if self.weights == "official" else torch.ones(h, w, device=device)


def border_weights(h: int, w: int, device: torch.device | str = "cpu") -> Tensor:
    """[h, w]: the distance to the nearest border as a fraction of the window's length that way, at least 0.01. (`get_weighting`
    with clip_min_weight 0.01 and clip_max_weight 0.5, the notebook's values, which the distance never exceeds.)"""
    y_h, x_w = (
        torch.linspace(0, 1, n, device=device) if n > 1 else torch.full((1,), 0.5, device=device) for n in (h, w)
    )
    far_h, far_w = (torch.minimum(at, 1 - at) for at in (y_h, x_w))
    return torch.minimum(far_h[:, None], far_w[None, :]).clamp(LEAST, MOST)


def windowed(denoise: Denoise, windows: Windows) -> Denoise:
    """`denoise` window by window. z_0 and eps are averaged alike, which is averaging what the network answers: at one z_t and t
    both are linear in it.

    Memory is that of one window, with a gradient too: its forward pass is computed again on the way back.
    """

    def windowed_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        def answer(window: Window) -> Prediction:
            inside = (window.of(zt_BCHW), t_B, window.of_condition(cond))
            if not (torch.is_grad_enabled() and zt_BCHW.requires_grad):
                return denoise(*inside)
            return Prediction(
                *checkpoint(lambda z, t: tuple(denoise(z, t, inside[2])), *inside[:2], use_reentrant=False)
            )

        return Prediction(*windows.averaged(answer, *zt_BCHW.shape[2:]))

    return windowed_denoise


def borders(size: int, side: int, overlap: int) -> Iterator[int]:
    """Positions along one side where a window begins or ends inside, rising: between `p - 1` and `p`."""
    first = starts(size, side, overlap)
    yield from sorted({p for begin in first for p in (begin, begin + side) if 0 < p < size})
