"""What is left of an image around a hole, and where the hole is, concatenated to the latent: inpainting
(docs/paper.md#conditioning).

Shape letters: B batch, C channels, c of the latent, H W pixels, h w of the latent.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.conditioning.base import Cond, Size
from ldmlab.data.batches import to_uint8
from ldmlab.data.masks import MaskKind, masks
from ldmlab.data.parcel import on_device
from ldmlab.ranges import Given, Items


class Inpaint(nn.Module):
    """The first stage's latent of the masked image (c channels) and the mask at the latent's size (1); it learns nothing.

    Args:
        latent_shape, resolution, first_stage: given by the assembly (`Facts`), never options.
        masks: kinds of `data.masks`, drawn with equal probability, anew for each visit of an image.

    Mask 1 is the hole. Holes of the image are -1, the latent of which is the first stage's answer to black; the mask is resized
    by its nearest pixel and mapped to [-1, 1]. Samples keep the known pixels (`complete`), as the official script does.
    """

    needs = ("image", "position")
    shows = ("hole",)  # what metrics may ask of samples that were drawn for it
    context_dim = None
    vector_dim = None

    def __init__(
        self,
        latent_shape: Annotated[tuple[int, int, int], Given],
        resolution: Annotated[int, Given],
        first_stage: Annotated[Callable[[Tensor], Tensor] | None, Given],
        masks: Annotated[list[MaskKind], Items(at_least=1, distinct=True)] = ["thick", "medium", "thin", "box"],  # noqa: B006 - read only
        image_channels: Annotated[int, Given] = 3,
    ):
        super().__init__()
        self.image_channels = image_channels
        self.latent_shape, self.first_stage, self.kinds = latent_shape, first_stage, masks
        self.factor = resolution // latent_shape[1]  # pixels a side of a position
        self.size: Size = latent_shape[1:]
        self.concat_channels: int = latent_shape[0] + 1

    def forward(self, batch: dict[str, Any]) -> Cond:
        """[B, c + 1, h, w], float32."""
        mask_B1HW = self.mask(batch)
        return self._cond(masked(batch["image"], mask_B1HW), mask_B1HW, self.size)

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """One hole, the whole image."""
        pixels = (size[0] * self.factor, size[1] * self.factor)
        image_13HW, mask_11HW = (
            torch.full((1, self.image_channels, *pixels), -1.0, device=device),
            torch.ones(1, 1, *pixels, device=device),
        )
        concat_1Chw = self._cond(image_13HW, mask_11HW, size).concat_BCHW
        assert concat_1Chw is not None
        return Cond(concat_BCHW=concat_1Chw.expand(batch_size, -1, -1, -1))

    def mask(self, batch: dict[str, Any]) -> Tensor:
        """float32 [B, 1, H, W], 1 in the hole, on the image's device: what a person gave as "hole", [B, H, W], else drawn; for an
        oblong image a square mask, cut."""
        if "hole" in batch:
            given_BHW: Tensor = batch["hole"]
            return given_BHW[:, None].float()
        height, width = batch["image"].shape[2:]
        square_B1SS = masks(self.kinds, batch["position"], max(height, width))
        return on_device(square_B1SS[:, :, :height, :width], batch["image"].device)

    def complete(self, image_BCHW: Tensor, batch: dict[str, Any]) -> Tensor:
        """Generated images with the known pixels of the batch's own, [B, 3, H, W] in [-1, 1]."""
        return torch.where(self.mask(batch) > 0, image_BCHW, on_device(batch["image"], image_BCHW.device))

    def picture(self, batch: dict[str, Any]) -> Tensor:
        """The condition to look at, uint8 [B, H, W, 3]: the image, grey where the hole is."""
        return to_uint8(torch.where(self.mask(batch) > 0, torch.zeros(()), batch["image"]))

    def _cond(self, masked_BCHW: Tensor, mask_B1HW: Tensor, size: Size) -> Cond:
        mask_B1hw = F.interpolate(mask_B1HW, size, mode="nearest") * 2 - 1
        if self.first_stage is None:
            latent_BCHW = mask_B1hw.new_zeros(len(mask_B1hw), self.latent_shape[0], *size)
        else:
            latent_BCHW = self.first_stage(masked_BCHW)
        return Cond(concat_BCHW=torch.cat([latent_BCHW, mask_B1hw], dim=1))


def masked(image_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """The image with -1 in the hole, [B, 3, H, W] in [-1, 1]."""
    return torch.where(mask_B1HW > 0, image_BCHW.new_full((), -1.0), image_BCHW)
