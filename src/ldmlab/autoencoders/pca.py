"""The linear first stage: principal components in closed form from the training images, and nothing trained.

It is the bar for every first stage that is trained, and the start of those that have it as their linear path
(`residual.ResidualNetwork`).

Shape letters: B batch, C channels, H W space of the latent, P = 3·f·f values of a patch.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.autoencoders.linear_path import LinearMap, LinearPath
from ldmlab.autoencoders.network import Network
from ldmlab.autoencoders.whole_image import WholeImagePath
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given


class PCANetwork(Network):
    """Principal components of f×f patches, c of them; nothing is trained.

    f           patch size in pixels, 1 to 32
    c           components, at most 3·f·f
    window      latents a side that the decoder reads for a patch, see `LinearPath`; 1 is PCA
    rounds      0: each latent is of its own patch; more: of window×window patches (a lapped transform), see `LinearPath`
    whiten      True: each channel of unit variance; False: one scale for all, see `LinearPath`
    image_size  null, or the side of the images, all of one size: components of whole images, see `WholeImagePath`
    mirror      with image_size: mirrored training images count too
    fit_images  training images that the components are taken from, spread evenly over them; null is all
    """

    fits = True

    def __init__(
        self,
        f: int,
        c: int,
        channels_in: Callable[[int], int],
        window: Literal[1, 3, 5] = 1,
        whiten: bool = True,
        fit_images: int | None = None,
        rounds: int = 0,
        image_size: int | None = None,
        mirror: bool = False,
        image_channels: Annotated[int, Given] = 3,
    ):
        super().__init__()
        self.image_channels = image_channels
        check_linear(f, c, fit_images, window, rounds, image_size, mirror, image_channels)
        self.f, self.c, self.fit_images = f, c, fit_images
        self.linear = linear_map(f, c, window, whiten, rounds, image_size, mirror, image_channels)
        self.image_size, self.least_images = self.linear.image_size, self.linear.least_images
        self.quant_conv = nn.Conv2d(c, channels_in(c), 1).requires_grad_(False)
        with torch.no_grad():  # the components as they are; what else the regulariser asks for is constant
            self.quant_conv.weight.copy_(torch.eye(channels_in(c), c)[:, :, None, None])
            self.quant_conv.bias.zero_()  # type: ignore[union-attr]

    @property
    def moments_layer(self) -> nn.Conv2d:
        """Constant, but for the start that the regulariser gives it (KL: the log-variance)."""
        return self.quant_conv

    def fit_linear(self, images: Iterable[Tensor]) -> None:
        """See `LinearPath.fit`."""
        self.linear.fit(images)

    @property
    def encoder_waits(self) -> bool:
        """Whether encoding is more than the projection."""
        return self.linear.encoder_waits

    def fit_encoder(self, images: Iterable[Tensor]) -> None:
        """See `LinearPath.fit_encoder`."""
        self.linear.fit_encoder(images)

    def fit_decoder(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """See `LinearPath.fit_decoder`."""
        self.linear.fit_decoder(pairs)

    @property
    def decoder_waits(self) -> bool:
        """Whether decoding is more than the transpose and so needs `fit_decoder` even for an unchanged latent."""
        return self.linear.decoder_waits

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.quant_conv(self.linear.encode(image_BCHW))

    def decode_features(self, z_BCHW: Tensor) -> Tensor:
        """Latent → patches, [B, P, H, W]."""
        return self.linear.decode(z_BCHW)

    def to_image(self, features_BCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(features_BCHW, self.f)


def linear_map(
    f: int,
    c: int,
    window: int,
    whiten: bool,
    rounds: int,
    image_size: int | None,
    mirror: bool,
    image_channels: int = 3,
) -> LinearMap:
    """Of patches, or (with image_size) of whole images."""
    if image_size is None:
        return LinearPath(f, c, window, whiten, rounds, image_channels)
    return WholeImagePath(f, c, image_size, whiten, mirror, image_channels)


def check_linear(
    f: int,
    c: int,
    images: int | None,
    window: int,
    rounds: int,
    image_size: int | None,
    mirror: bool,
    image_channels: int = 3,
) -> None:
    """Raises ConfigError for values that no linear first stage has."""
    if not 1 <= f <= 32:
        raise ConfigError(f"ae.network.f={f} must be between 1 and 32.")
    most = image_channels * f * f
    if not 1 <= c <= most:
        raise ConfigError(
            f"ae.network.c={c}: a {f}x{f} patch has {most} values, so at most as many components; take 1 to {most}."
        )
    if images is not None and images < 1:
        raise ConfigError(f"ae.network.images={images} must be at least 1, or null for all training images.")
    if rounds < 0 or (rounds and window == 1):
        raise ConfigError(
            f"ae.network.rounds={rounds} with ae.network.window={window}: an encoder that reads neighbours needs a window of 3 or "
            "5, and rounds from 0 up. Set ae.network.window=3, or ae.network.rounds=0."
        )
    if mirror and image_size is None:
        raise ConfigError(
            "ae.network.mirror=true needs the components of whole images. Set ae.network.image_size to data.resolution, or "
            "ae.network.mirror=false."
        )
    if image_size is not None and (window > 1 or rounds):
        raise ConfigError(
            f"ae.network.image_size={image_size} with ae.network.window={window} and ae.network.rounds={rounds}: a linear path "
            "sees the whole image or a window of patches. Set ae.network.window=1 ae.network.rounds=0, or ae.network.image_size=null."
        )
