"""The image at a fraction of its size, concatenated to the latent: super-resolution (docs/paper.md#conditioning).

Shape letters: B batch, C channels, H W pixels, h w of the latent.
"""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.conditioning.base import Cond, Size
from ldmlab.data.batches import to_uint8
from ldmlab.data.degradations import DEGRADATIONS
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Range


class LowResolution(nn.Module):
    """The image of an example, made smaller in eight bits, as three channels in [-1, 1]; it learns nothing.

    Args:
        latent_shape, resolution: given by the assembly (`Facts`), never options.
        degradation: "bicubic" with anti-aliasing, the same at each visit; "bsr_light", blur, noise and JPEG drawn anew for each
            visit of an image (`data.degradations`).
        factor: how many times smaller each side becomes; 4 in the paper.

    Where the small image has not the latent's size (the paper's f = 4 = factor), it is brought to it bicubically.
    Raises ConfigError for a resolution that the factor does not divide.
    """

    needs = ("image", "position")
    shows = ("small_image",)  # what metrics may ask of samples that were drawn for it
    context_dim = None
    vector_dim = None
    concat_channels = 3

    def __init__(
        self,
        latent_shape: Annotated[tuple[int, int, int], Given],
        resolution: Annotated[int, Given],
        degradation: Literal["bicubic", "bsr_light"] = "bicubic",
        factor: Annotated[int, Range(at_least=2, at_most=16)] = 4,
    ):
        super().__init__()
        if resolution % factor:
            low, high = resolution // factor * factor, -(-resolution // factor) * factor
            raise ConfigError(
                f"cond.conditioner.factor={factor} does not divide data.resolution={resolution}. Use data.resolution={low or high} "
                f"or {high}, or another factor."
            )
        self.size: Size = latent_shape[1:]
        self.factor, self.degradation = factor, degradation

    def forward(self, batch: dict[str, Any]) -> Cond:
        """[B, 3, h, w], float32."""
        return Cond(concat_BCHW=resized(self.small(batch), self.size))

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """Zeros, a grey image: nothing is published, for the paper's model is never trained without its condition."""
        return Cond(concat_BCHW=torch.zeros(batch_size, self.concat_channels, *size, device=device))

    def small(self, batch: dict[str, Any]) -> Tensor:
        """The small images, float32 [B, 3, H/factor, W/factor] in [-1, 1], each value one of 256; those that a person gave as they are."""
        if "small_image" in batch:
            given_BCHW: Tensor = batch["small_image"]
            return given_BCHW
        return DEGRADATIONS[self.degradation](batch["image"], batch["position"], self.factor)

    def picture(self, batch: dict[str, Any]) -> Tensor:
        """The condition to look at, uint8 [B, H/factor, W/factor, 3]."""
        return to_uint8(self.small(batch))


def resized(image_BCHW: Tensor, size: Size) -> Tensor:
    """Bicubically, values kept within [-1, 1]; itself where it has that size."""
    if tuple(image_BCHW.shape[2:]) == tuple(size):
        return image_BCHW
    return F.interpolate(image_BCHW, size, mode="bicubic", antialias=True).clamp(-1, 1)
