"""PatchGAN: real or reconstructed, one logit per patch (Isola et al. 2017; official
taming/modules/discriminator/model.py).

Sub-modules carry the official names: `main.N`, so `loss.discriminator.main.N.weight` of a checkpoint is `main.N.weight`
here.

Shape letters: B batch, C channels, H W space, G groups.
"""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Range, Width


class GroupedBatchNorm(nn.Module):
    """Batch normalisation by the statistics of given groups of consecutive images; no running averages.

    The official BatchNorm takes its statistics from whatever one process holds, so its result depends on the number of
    GPUs and on the micro-batch. Here an image's group is stated. One group of the whole batch is nn.BatchNorm2d in
    training mode.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor, groups: list[int]) -> Tensor:
        """`groups` are the groups' sizes, in order; their sum is B."""
        normalised = [
            F.batch_norm(g_BCHW, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for g_BCHW in x_BCHW.split(groups)
        ]
        return normalised[0] if len(normalised) == 1 else torch.cat(normalised)


class PatchGAN(nn.Module):
    """`layers` convolutions of stride 2, one of stride 1, one to a logit; 4×4, LeakyReLU 0.2, weights N(0, 0.02).

    layers   the paper has 3, and 2 for vq-f8 and vq-f16
    width    filters of the first convolution; doubled per layer up to eight times
    """

    def __init__(
        self,
        layers: Annotated[int, Range(at_least=1, at_most=12)] = 3,
        width: Width = 64,
        image_channels: Annotated[int, Given] = 3,
    ):
        super().__init__()
        for name, value in {"layers": layers, "width": width}.items():
            if value < 1:
                raise ConfigError(f"ae.loss.discriminator.{name}={value} must be at least 1.")
        self.layers = layers
        main: list[nn.Module] = [
            nn.Conv2d(image_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        before = width
        for layer in range(1, layers + 1):
            after = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            main += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                GroupedBatchNorm(after),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            before = after
        main.append(nn.Conv2d(before, 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        self.apply(_initialise)

    @property
    def min_resolution(self) -> int:
        """Images must be at least this large: each 4×4 convolution of stride 1 takes a pixel away."""
        return 3 * 2**self.layers

    def forward(self, image_BCHW: Tensor, groups: list[int]) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → logits [B, 1, H', W'].

        `groups`: sizes of the groups of consecutive images that share normalisation statistics. Real and reconstructed
        images go through in one call, with their own groups: a distributed wrapper wants one forward per backward.
        Raises ConfigError for images smaller than `min_resolution`.
        """
        size = min(image_BCHW.shape[-2:])
        if size < self.min_resolution:
            raise ConfigError(
                f"data.resolution={size} is too small for ae.loss.discriminator.layers={self.layers}, which needs "
                f"{self.min_resolution}; take fewer layers or ae/loss/discriminator=none."
            )
        x_BCHW = image_BCHW
        for part in self.main:
            x_BCHW = part(x_BCHW, groups) if isinstance(part, GroupedBatchNorm) else part(x_BCHW)
        return x_BCHW


def _initialise(module: nn.Module) -> None:
    # official weights_init: convolution weights N(0, 0.02), normalisation weights N(1, 0.02) and bias 0
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, GroupedBatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
