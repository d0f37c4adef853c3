"""The observation of an image that is compared with a target: the T of the paper's App. C, -1/2 ‖T(x) - T(D(z_0))‖².

Each is differentiable in the image. Shape letters: B batch, C channels, H W space.
"""

from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.ranges import Fraction, Items, Range

PATH = "guidance.image.transform"  # of the options, in messages


class Observation(Protocol):
    """A part of guidance by an image."""

    def check(self, resolution: int) -> None:
        """ConfigError unless images of this many pixels a side can be looked at so."""
        ...

    def __call__(self, image_BCHW: Tensor) -> Tensor: ...


class Downsample:
    """The image made smaller, bicubic with anti-aliasing: guided by a thumbnail (the paper's 2x for larger synthesis).

    Args:
        factor: by which height and width are divided, from 2 up.

    Raises ConfigError for a factor below 2; `check`, unless it divides the resolution.
    """

    def __init__(self, factor: Annotated[int, Range(at_least=2, at_most=16_384)] = 2):
        if factor < 2:
            raise ConfigError(
                f"{PATH}.factor must be at least 2; got {factor}. The image as it is: guidance/transform=none."
            )
        self.factor = factor

    def check(self, resolution: int) -> None:
        if resolution % self.factor:
            raise ConfigError(
                f"{PATH}.factor={self.factor} does not divide data.resolution={resolution}. Use a factor that does: 2, 4, 8 …"
            )

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H / factor, W / factor]."""
        return F.interpolate(
            image_BCHW, scale_factor=1 / self.factor, mode="bicubic", antialias=True, align_corners=False
        )


class Mask:
    """The image outside a rectangular hole: inpainting by guidance.

    Args:
        hole: [top, left, bottom, right] in fractions of the side, 0 … 1.

    Raises ConfigError for a hole without area; `check`, when whole pixels leave none of it, or nothing but it.
    """

    def __init__(self, hole: Annotated[list[Fraction], Items(4, 4)] | None = None):
        self.hole = [0.25, 0.25, 0.75, 0.75] if hole is None else hole
        ok = len(self.hole) == 4 and all(0 <= v <= 1 for v in self.hole)
        if not ok or not (self.hole[0] < self.hole[2] and self.hole[1] < self.hole[3]):
            raise ConfigError(
                f"{PATH}.hole must be [top, left, bottom, right], fractions of the side with top < bottom and left < right; "
                f"got {self.hole}."
            )

    def check(self, resolution: int) -> None:
        kept = self(torch.ones(1, 1, resolution, resolution))
        if kept.all() or not kept.any():
            what = "no whole pixel" if kept.all() else "the whole image"
            raise ConfigError(f"{PATH}.hole={self.hole} is {what} at data.resolution={resolution}. Change it.")

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """The image, zero in the hole; [B, C, H, W] as it was."""
        height, width = image_BCHW.shape[-2:]
        top, left, bottom, right = (
            round(v * side) for v, side in zip(self.hole, (height, width, height, width), strict=True)
        )
        kept_HW = torch.ones(height, width, dtype=image_BCHW.dtype, device=image_BCHW.device)
        kept_HW[top:bottom, left:right] = 0
        return image_BCHW * kept_HW
