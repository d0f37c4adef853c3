"""A small network that says of each pixel which class it shows and how far away it is: the judge of maps and boxes in samples.

It is trained on the images and maps of a data set (`training.segmenter_loss`), kept by its content, and looks at samples only
afterwards. As in `metrics.classifier` nothing in it divides by a statistic of the image.

Shape letters: B batch, C channels, H W pixels, K classes.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.metrics.classifier import Residual, ScaledConv, active
from ldmlab.store.checkpoint import load_tensors

SMALLEST = 16  # pixels a side
WEIGHTS, NETWORK = "weights.safetensors", "network.json"  # of a finished segmenter's folder


class PerPixel(NamedTuple):
    """Of each pixel: logits of its class, float32 [B, K, H, W]; its depth, float32 [B, H, W], 0 near to 1 far."""

    logits_BKHW: Tensor
    depth_BHW: Tensor


class Segmenter(nn.Module):
    """Three halvings and back, each level joined to the one of its size on the way down.

    Args:
        classes: numbers that a pixel's class can be, K; 0 is the background where the data says so.
        width: channels at full size; the halved levels have 2, 3 and 3 times as many.
        image_channels: 3 of RGB.
    """

    def __init__(self, classes: int, width: int, image_channels: int = 3):
        super().__init__()
        self.classes, self.width, self.image_channels = classes, width, image_channels
        widths = [width, 2 * width, 3 * width, 3 * width]
        self.stem = ScaledConv(image_channels, width)
        self.downs = nn.ModuleList(ScaledConv(widths[i], widths[i + 1], stride=2) for i in range(3))
        self.blocks = nn.ModuleList(Residual(after) for after in widths[1:])
        self.ups = nn.ModuleList(ScaledConv(widths[i + 1] + widths[i], widths[i]) for i in (2, 1, 0))
        self.head = nn.Conv2d(width, classes + 1, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, image_BCHW: Tensor) -> PerPixel:
        """Of uint8 images in 0 … 255 or float ones in [-1, 1], [B, 3, H, W] from 16 pixels a side."""
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != self.image_channels or min(image_BCHW.shape[2:]) < SMALLEST:
            raise ValueError(
                f"the segmenter takes [B, {self.image_channels}, H, W] from {SMALLEST} px; got {tuple(image_BCHW.shape)}"
            )
        x_BCHW = image_BCHW.float() / 127.5 - 1 if image_BCHW.dtype == torch.uint8 else image_BCHW
        h_BCHW = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        passed = []
        for down, block in zip(self.downs, self.blocks, strict=True):
            passed.append(h_BCHW)
            h_BCHW = block(down(active(h_BCHW)))
        for up in self.ups:
            beside_BCHW = passed.pop()
            larger_BCHW = F.interpolate(h_BCHW, beside_BCHW.shape[2:], mode="nearest")
            h_BCHW = up(active(torch.cat([larger_BCHW, beside_BCHW], dim=1)))
        out_BCHW = self.head(active(h_BCHW)).float()
        return PerPixel(out_BCHW[:, :-1], out_BCHW[:, -1].sigmoid())

    @torch.no_grad()
    def classes_of(self, image_BCHW: Tensor) -> Tensor:
        """The likeliest class of each pixel, int64 [B, H, W]."""
        return self(image_BCHW).logits_BKHW.argmax(dim=1)


def load_segmenter(folder: Path, device: torch.device | str = "cpu") -> Segmenter:
    """The finished segmenter of a stage's folder (`inputs.stages["segmenter"]` of a metric), frozen and in eval mode."""
    net = Segmenter(**json.loads((folder / NETWORK).read_text(encoding="utf-8")))
    net.load_state_dict(load_tensors(folder / WEIGHTS))
    return net.to(device).eval().requires_grad_(False)
