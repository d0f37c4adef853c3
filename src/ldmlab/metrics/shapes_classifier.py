"""A small classifier for the generated shapes: the offline extractor, and a feature pyramid for a perceptual distance.

It is trained by `training.classifier_loss.ClassifierLoss` like any other network of a run and kept by its content.
Its numbers are marked "shapes"; compare them within a study only.

Shape letters: B batch, C channels, H W space, D features, K classes.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from ldmlab.errors import ConfigError
from ldmlab.metrics.features import Features, hash_of
from ldmlab.ranges import Range, Width


def norm(width: int) -> nn.GroupNorm:
    """Groups of 8 channels. It stands before *every* convolution but the first: that is what makes 40 000 images enough."""
    return nn.GroupNorm(width // 8, width)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), same size."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        r_BCHW = self.conv1(nn.functional.silu(self.norm1(h_BCHW)))
        return h_BCHW + self.conv2(nn.functional.silu(self.norm2(r_BCHW)))


class ShapesClassifier(nn.Module):
    """Residual network of three halvings with a mean over space, so any image from 16 px up fits.

    `width`: channels after the first halving are 2 x width, then 4 x width; features are 4 x width (128 for 32).
    `forward` takes uint8 [B, 3, H, W] in 0..255 or, in training, float [B, 3, H, W] in [-1, 1].
    Normalisation is per image (GroupNorm): features do not depend on the batch, in training or in eval mode.
    """

    name = "shapes"
    min_size = 16
    classes_of_data = True
    resize_text = "none"
    preprocessing = "shapes classifier; x / 127.5 - 1; no resize; mean over space after the last norm and SiLU"

    def __init__(self, n_classes: Annotated[int, Range(at_least=2, at_most=100_000)] = 10, width: Width = 32):
        super().__init__()
        if width < 8 or width % 8:
            near = max(8, round(width / 8) * 8)
            raise ConfigError(
                f"eval.extractor.width must be a positive multiple of 8; got {width}. The nearest is {near}."
            )
        if n_classes < 1:
            raise ConfigError(
                f"eval.extractor.n_classes={n_classes}: must be at least 1. Set it to the number of classes of the data."
            )
        self.feature_dim, self.logit_dim = 4 * width, n_classes
        widths = [2 * width, 4 * width, 4 * width]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip([width, *widths], widths, strict=False)
        )
        self.norms = nn.ModuleList(norm(before) for before in [width, *widths[:-1]])
        self.blocks = nn.ModuleList(Residual(after) for after in widths)
        self.norm = norm(widths[-1])
        self.head = nn.Linear(self.feature_dim, n_classes)
        self.to(memory_format=torch.channels_last)

    def fingerprint(self) -> str:
        return hash_of(self, self.preprocessing)

    def feature_maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """Maps at 1, 1/2, 1/4 and 1/8 of the side, for float images in [-1, 1]; differentiable in the image."""
        h_BCHW = self.stem(image_BCHW.contiguous(memory_format=torch.channels_last))
        maps = [h_BCHW]
        for before, down, block in zip(self.norms, self.downs, self.blocks, strict=True):
            h_BCHW = block(down(nn.functional.silu(before(h_BCHW))))
            maps.append(h_BCHW)
        return maps

    def forward(self, image_BCHW: Tensor) -> Features:
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3:
            raise ValueError(f"{self.name} takes [B, 3, H, W]; got {tuple(image_BCHW.shape)}")
        if min(image_BCHW.shape[2:]) < self.min_size:
            raise ConfigError(
                f"eval.extractor: the shapes classifier takes images of at least {self.min_size} pixels a side; "
                f"data.resolution={min(image_BCHW.shape[2:])} is smaller."
            )
        x_BCHW = image_BCHW.float() / 127.5 - 1 if image_BCHW.dtype == torch.uint8 else image_BCHW
        h_BCHW = nn.functional.silu(self.norm(self.feature_maps(x_BCHW)[-1]))
        features_BD = h_BCHW.mean(dim=(2, 3))
        return Features(features_BD, self.head(features_BD))
