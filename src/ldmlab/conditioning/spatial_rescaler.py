"""A class map, one-hot, halved to the latent's size and mapped to a few channels by a learned 1x1 convolution: the paper's
semantic models (SpatialRescaler of ldm/modules/encoders/modules.py; docs/paper.md#conditioning).

Shape letters: B batch, C channels, H W pixels of the map, h w of the latent, K classes.
"""

from typing import Annotated, Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.conditioning.base import Cond, Size
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Width


class SpatialRescaler(nn.Module):
    """Field of class numbers [B, H, W] → [B, channels, h, w], concatenated to the latent.

    Args:
        field: a class map of the data.
        latent_shape, resolution, vocabulary: given by the assembly (`Facts`), never options.
        channels: what the K classes are mapped to; 3 in the paper.

    Each halving is bilinear, which averages 2x2 pixels; log2(H / h) of them. The convolution has no bias, so that the null
    condition, no class anywhere, is zero in every channel. Its weight is the official `channel_mapper.weight`.

    Raises ConfigError for a field that is no class map.
    """

    context_dim = None
    vector_dim = None

    def __init__(
        self,
        latent_shape: Annotated[tuple[int, int, int], Given],
        resolution: Annotated[int, Given],
        vocabulary: Annotated[dict[str, int | None], Given],
        field: str = "segmentation",
        channels: Width = 3,
    ):
        super().__init__()
        self.classes = vocabulary.get(field)
        if field in vocabulary and self.classes is None:
            raise ConfigError(
                f"cond.conditioner.field={field}: this field of the data has no class numbers. Name a class map, or use "
                "cond=depth for a map of numbers."
            )
        self.field, self.size = field, latent_shape[1:]
        self.halvings = (resolution // latent_shape[1]).bit_length() - 1
        self.needs: tuple[str, ...] = (field,)
        self.concat_channels: int = channels
        self.channel_mapper = nn.Conv2d(self.classes or 1, channels, 1, bias=False)

    def forward(self, batch: dict[str, Any]) -> Cond:
        """[B, channels, h, w], float32."""
        class_BHW: Tensor = batch[self.field]
        map_BKHW = rearrange(F.one_hot(class_BHW.long(), self.channel_mapper.in_channels), "b h w k -> b k h w").float()
        for _ in range(self.halvings):
            map_BKHW = F.avg_pool2d(map_BKHW, 2)
        return Cond(concat_BCHW=self.channel_mapper(map_BKHW))

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """Zeros: no class anywhere."""
        return Cond(concat_BCHW=torch.zeros(batch_size, self.concat_channels, *size, device=device))
