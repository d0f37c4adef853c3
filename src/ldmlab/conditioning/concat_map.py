"""A map of the image, concatenated to the latent: segmentation → image, depth → image.

Shape letters: B batch, C channels, H W pixels of the field, h w of the latent.
"""

from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond, Size
from ldmlab.data.fields import as_channels
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Width


class ConcatMap(nn.Module):
    """One field, resized to the latent; it learns nothing. (The paper's semantic models rescale with a learned layer.)

    Args:
        field: a class map (integers [B, H, W]), which becomes one channel per class; a map (float [B, H, W] or [B, H, W, C]),
            as it is; or a picture (uint8 [B, H, W, 3]), in [-1, 1].
        latent_shape, vocabulary: given by the assembly (`Facts`), never options.
        channels: of a map or picture; null: 1. A class map has as many as it has classes.
        resize: "area" averages, so that a class channel holds the share of the cell that is of this class; "nearest" keeps
            one value per cell.

    Raises ConfigError for a field that is no map, and for channels that a class map cannot have.
    """

    context_dim = None
    vector_dim = None

    def __init__(
        self,
        field: str,
        latent_shape: Annotated[tuple[int, int, int], Given],
        vocabulary: Annotated[dict[str, int | None], Given],
        channels: Width | None = None,
        resize: Literal["area", "nearest"] = "area",
    ):
        super().__init__()
        self.classes = vocabulary.get(field)
        if self.classes is not None and channels not in (None, self.classes):
            raise ConfigError(
                f"cond.conditioner.channels={channels}, but the field '{field}' has {self.classes} classes, a channel each. "
                "Set it to null."
            )
        if channels is not None and channels < 1:
            raise ConfigError(f"cond.conditioner.channels must be at least 1, or null; got {channels}.")
        self.field, self.resize = field, resize
        self.size: Size = latent_shape[1:]
        self.needs = (field,)
        self.concat_channels: int = self.classes or channels or 1

    def forward(self, batch: dict[str, Any]) -> Cond:
        """[B, channels, h, w], float32. Raises ConfigError where the field's channels are not those of the options."""
        map_BCHW = self._channels(batch[self.field])
        if map_BCHW.shape[1] != self.concat_channels:
            raise ConfigError(
                f"cond.conditioner.channels={self.concat_channels}, but the field '{self.field}' has {map_BCHW.shape[1]}. "
                "Set it to this number."
            )
        return Cond(concat_BCHW=nn.functional.interpolate(map_BCHW, self.size, mode=self.resize))

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """Zeros: no class anywhere."""
        return Cond(concat_BCHW=torch.zeros(batch_size, self.concat_channels, *size, device=device))

    def _channels(self, value: Tensor) -> Tensor:
        if self.classes is not None:
            return rearrange(nn.functional.one_hot(value.long(), self.classes), "b h w c -> b c h w").float()
        map_BCHW = as_channels(value)
        return map_BCHW.float() / 127.5 - 1 if value.dtype == torch.uint8 else map_BCHW.float()
