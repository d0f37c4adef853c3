"""What a sampler is handed. Samplers import no network, schedule or condition: they meet these shapes.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Level(Protocol):
    """Signal and noise of one time."""

    @property
    def alpha(self) -> float: ...
    @property
    def sigma(self) -> float: ...


class Schedule(Protocol):
    """z_t = alpha z_0 + sigma eps for t = -1 (the data) … T-1."""

    T: int

    def at(self, t: int) -> Level: ...


class Prediction(Protocol):
    """What a denoiser predicts from z_t."""

    @property
    def z0(self) -> Tensor: ...
    @property
    def eps(self) -> Tensor: ...


Denoise = Callable[[Tensor, Tensor, Any], Prediction]  # (z_t [B, C, H, W], t_B int64, condition) → Prediction
Noise = Callable[
    [], Tensor
]  # the next standard normal draw, [B, C, H, W]; randomness.ImageNoise has one stream per image
Callback = Callable[[int, int, Tensor], Tensor | None]
"""(steps done, steps in all, z): progress bars and films. A tensor that it returns takes the place of z."""


def at_time(t: int, z_BCHW: Tensor) -> Tensor:
    """The time t for each image, int64 [B]. It carries its number, so that nobody asks a GPU for it (`time_of`)."""
    t_B = torch.full((len(z_BCHW),), t, device=z_BCHW.device)
    t_B.whole = t  # type: ignore[attr-defined]
    return t_B


def time_of(t_B: Tensor) -> int | None:
    """The one time of all images, where it was made by `at_time`."""
    return getattr(t_B, "whole", None)


def after_step(callback: Callback | None, done: int, steps: int, z_BCHW: Tensor) -> Tensor:
    """The z to go on with: what the callback makes of it, or z itself."""
    if callback is None:
        return z_BCHW
    changed_BCHW = callback(done, steps, z_BCHW)
    return z_BCHW if changed_BCHW is None else changed_BCHW
