"""A convolutional first stage beside a linear one: z = PCA(x) + E(x) and x̂ = PCA⁻¹(z) + D(z), with E and D zero at the start.

So training begins where the best linear map ends, and every step goes into what a linear map cannot do. The full
resolution is never convolved: `pixel_unshuffle` comes first and `pixel_shuffle` last, and between levels too
(space to channel, as DC-AE, arXiv 2410.10733).

Shape letters: B batch, C channels, H W space, P = 3·f·f values of a patch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.autoencoders.conv import ConvResidual
from ldmlab.autoencoders.network import Network
from ldmlab.autoencoders.norm import NormSwish
from ldmlab.autoencoders.pca import check_linear, linear_map
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given

Path = Literal["pca", "average", "none"]


class ResidualNetwork(Network):
    """Residual blocks at every level, with a linear path around all of them; f = stem · 2^(levels − 1).

    c               latent channels
    channels_in     latent channels → channels the regulariser wants from the encoder (passed by build, not an option)
    multipliers     width of level L = width · multipliers[L]; level 0 is at 1/stem of the image's size
    stem            side of the pixel blocks that become channels before the first convolution, and pixels again after the last
    width           channels of the first level
    depths          residual blocks (two 3×3 convolutions, GroupNorm) of each level of the encoder
    decoder_depths  the same of the decoder; null: as the encoder
    path            pca: principal components of f×f patches run beside encoder and decoder, whose last convolutions start at
                    zero. average: each change of resolution has DC-AE's shortcut, averaged or repeated channels. none: neither
    window          path=pca: latents a side that the linear decoder reads for a patch (`linear_path.LinearPath`); 1 is PCA's transpose
    whiten          path=pca: each linear channel of unit variance, or (false) one scale for all, which suits a codebook
    rounds          path=pca: of alternating least squares, after which the linear encoder reads a window of patches too
                    (`linear_path.LinearPath`); 0: its own patch
    image_size      path=pca: null, or the side of the images, all of one size: the path sees whole images
                    (`whole_image.WholeImagePath`)
    mirror          with image_size: mirrored training images count too
    reads_linear    path=pca: the decoder's blocks at 1/stem read the linear image too, so that they mend what they see:
                    x̂ = PCA⁻¹(z) + D(z, PCA⁻¹(z))
    fit_images      path=pca: training images that the components are taken from, spread evenly over them; null is all

    Raises ConfigError for values no network can be built from.
    """

    def __init__(
        self,
        c: int,
        multipliers: list[int],
        channels_in: Callable[[int], int],
        stem: int = 2,
        width: int = 64,
        depths: list[int] | None = None,
        decoder_depths: list[int] | None = None,
        path: Path = "pca",
        window: Literal[1, 3, 5] = 3,
        whiten: bool = True,
        fit_images: int | None = None,
        rounds: int = 0,
        image_size: int | None = None,
        mirror: bool = False,
        reads_linear: bool = False,
        image_channels: Annotated[int, Given] = 3,
    ):
        super().__init__()
        self.image_channels = image_channels
        depths = depths or [2] * len(multipliers)
        decoder_depths = decoder_depths or depths
        _check(c, multipliers, stem, width, depths, decoder_depths)
        if reads_linear and path != "pca":
            raise ConfigError(
                f"ae.network.reads_linear=true needs the linear image of path=pca, not {path}. Set one of the two."
            )
        self.c, self.stem, self.f = c, stem, stem * 2 ** (len(multipliers) - 1)
        check_linear(self.f, c, fit_images, window, rounds, image_size, mirror, image_channels)
        self.fits, self.fit_images = path == "pca", fit_images
        linear = (self.f, c, window, whiten, rounds, image_size, mirror, image_channels)
        self.linear = linear_map(*linear) if path == "pca" else None
        if self.linear is not None:
            self.image_size, self.least_images = self.linear.image_size, self.linear.least_images
        widths = [width * m for m in multipliers]
        shortcut = path == "average"
        self.encoder = ResidualEncoder(channels_in(c), stem, widths, depths, shortcut, image_channels)
        self.decoder = ResidualDecoder(c, stem, widths, decoder_depths, shortcut, image_channels, reads_linear)
        if path == "pca":
            for conv in (self.encoder.conv_out, self.decoder.conv_out):
                nn.init.zeros_(conv.weight)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution; it emits stem×stem pixels a position."""
        weight = self.decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def moments_layer(self) -> nn.Conv2d:
        """The encoder's last convolution."""
        return self.encoder.conv_out

    @property
    def decoder_waits(self) -> bool:
        """Whether the linear decoder is more than the transpose."""
        return self.linear is not None and self.linear.decoder_waits

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """Those of D; the linear path stays as it was fitted."""
        return self.decoder.parameters()

    def fit_linear(self, images: Iterable[Tensor]) -> None:
        """See `LinearPath.fit`."""
        if self.linear is not None:
            self.linear.fit(images)

    @property
    def encoder_waits(self) -> bool:
        """Whether the linear encoder is more than the projection."""
        return self.linear is not None and self.linear.encoder_waits

    def fit_encoder(self, images: Iterable[Tensor]) -> None:
        """See `LinearPath.fit_encoder`."""
        if self.linear is not None:
            self.linear.fit_encoder(images)

    def fit_decoder(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """See `LinearPath.fit_decoder`."""
        if self.linear is not None:
            self.linear.fit_decoder(pairs)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → [B, channels_in(c), H/f, W/f]."""
        h_BCHW = self.encoder(image_BCHW)
        if self.linear is None:
            return h_BCHW
        linear_BCHW = self.linear.encode(image_BCHW)
        return h_BCHW + F.pad(
            linear_BCHW, (0, 0, 0, 0, 0, h_BCHW.shape[1] - self.c)
        )  # a log-variance has no linear part

    def encode_at_start(self, image_BCHW: Tensor) -> Tensor:
        """path=pca: what `encode` gives while E is zero but for its bias, without running E."""
        if self.linear is None:
            return self.encode(image_BCHW)
        linear_BCHW = self.linear.encode(image_BCHW)
        assert self.moments_layer.bias is not None
        rest = len(self.moments_layer.bias) - self.c
        return F.pad(linear_BCHW, (0, 0, 0, 0, 0, rest)) + self.moments_layer.bias.view(1, -1, 1, 1)

    def decode_features(self, z_BCHW: Tensor) -> Tensor:
        """Latent → the map that the last convolution reads and, behind its channels, the linear image at 1/stem of the size."""
        if self.linear is None:
            return self.decoder(z_BCHW)
        linear_BCHW = F.pixel_unshuffle(F.pixel_shuffle(self.linear.decode(z_BCHW), self.f), self.stem)
        features_BCHW = self.decoder(z_BCHW, linear_BCHW)
        return torch.cat([features_BCHW, linear_BCHW], dim=1)  # in the wider precision of both

    def last_input(self, features_BCHW: Tensor) -> Tensor:
        """Without the linear image."""
        return features_BCHW[:, : self.decoder.conv_out.in_channels]

    def to_image(self, features_BCHW: Tensor) -> Tensor:
        """The last convolution, plus the linear image: → [B, 3, H, W], not clamped."""
        pixels_BCHW = self.decoder.conv_out(self.last_input(features_BCHW))
        if self.linear is not None:
            pixels_BCHW = pixels_BCHW + features_BCHW[:, self.decoder.conv_out.in_channels :]
        return F.pixel_shuffle(pixels_BCHW, self.stem)


def _check(c: int, multipliers: list[int], stem: int, width: int, depths: list[int], decoder_depths: list[int]) -> None:
    for name, value in {"c": c, "width": width}.items():
        if value < 1:
            raise ConfigError(f"ae.network.{name}={value} must be at least 1.")
    if stem not in (1, 2, 4, 8, 16, 32):
        raise ConfigError(f"ae.network.stem={stem} is the side of the pixel blocks. Set 1, 2, 4, 8, 16 or 32.")
    if not multipliers or min(multipliers) < 1:
        raise ConfigError(
            f"ae.network.multipliers={multipliers} must list one whole number from 1 up per level; f is stem times 2 to the "
            f"number of levels less one, so with stem={stem}, write [1, 2] for f={2 * stem}."
        )
    for name, numbers in {"depths": depths, "decoder_depths": decoder_depths}.items():
        if len(numbers) != len(multipliers) or min(numbers) < 0:
            raise ConfigError(
                f"ae.network.{name}={numbers} must list one whole number from 0 up per level. Give {len(multipliers)} numbers, as many "
                "as ae.network.multipliers has."
            )


def averaged(x_BCHW: Tensor, channels: int) -> Tensor:
    """Neighbouring channels averaged, or repeated where more are wanted (DC-AE's shortcut; any two numbers of channels)."""
    B, C, H, W = x_BCHW.shape
    if channels > C:
        place = torch.arange(channels, device=x_BCHW.device) * C // channels
        return x_BCHW[:, place]
    return F.adaptive_avg_pool2d(x_BCHW.flatten(2).unsqueeze(1), (channels, H * W)).view(B, channels, H, W)


class Down(nn.Module):
    """Space to channel by 2, then a 1×1 convolution to the next level's width."""

    one_graph: ClassVar[bool] = True

    def __init__(self, before: int, after: int, shortcut: bool):
        super().__init__()
        self.conv, self.after, self.shortcut = nn.Conv2d(4 * before, after, 1), after, shortcut

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.pixel_unshuffle(x_BCHW, 2)
        h_BCHW = self.conv(x_BCHW)
        return h_BCHW + averaged(x_BCHW, self.after) if self.shortcut else h_BCHW


class Up(nn.Module):
    """A 1×1 convolution to four times the next level's width, then channel to space by 2."""

    one_graph: ClassVar[bool] = True

    def __init__(self, before: int, after: int, shortcut: bool):
        super().__init__()
        self.conv, self.after, self.shortcut = nn.Conv2d(before, 4 * after, 1), after, shortcut

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv(x_BCHW)
        h_BCHW = h_BCHW + averaged(x_BCHW, 4 * self.after) if self.shortcut else h_BCHW
        return F.pixel_shuffle(h_BCHW, 2)


class ResidualEncoder(nn.Module):
    """Image → `channels_out` maps at 1/f of the size."""

    def __init__(
        self,
        channels_out: int,
        stem: int,
        widths: list[int],
        depths: list[int],
        shortcut: bool,
        image_channels: int = 3,
    ):
        super().__init__()
        self.stem, self.shortcut, self.channels_out = stem, shortcut, channels_out
        self.conv_in = nn.Conv2d(image_channels * stem * stem, widths[0], 3, padding=1)
        levels: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level:
                levels.append(Down(widths[level - 1], width, shortcut))
            levels += [ConvResidual(width, width) for _ in range(depths[level])]
        self.levels = nn.Sequential(*levels)
        self.norm_out = NormSwish(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = self.levels(self.conv_in(F.pixel_unshuffle(image_BCHW, self.stem)))
        h_BCHW = self.conv_out(self.norm_out(x_BCHW))
        return h_BCHW + averaged(x_BCHW, self.channels_out) if self.shortcut else h_BCHW


class ResidualDecoder(nn.Module):
    """Latent → the map that `conv_out` turns into pixels (kept apart, because the adaptive weight needs it).

    reads_linear: the blocks at 1/stem see the linear image too.
    """

    def __init__(
        self,
        c: int,
        stem: int,
        widths: list[int],
        depths: list[int],
        shortcut: bool,
        image_channels: int = 3,
        reads_linear: bool = False,
    ):
        super().__init__()
        self.shortcut = shortcut
        pixels = image_channels * stem * stem
        self.conv_linear = nn.Conv2d(pixels, widths[0], 3, padding=1) if reads_linear else None
        self.conv_in = nn.Conv2d(c, widths[-1], 3, padding=1)
        levels: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            levels += [ConvResidual(widths[level], widths[level]) for _ in range(depths[level])]
            if level:
                levels.append(Up(widths[level], widths[level - 1], shortcut))
        self.coarse = len(levels) - depths[0]  # modules before the blocks at 1/stem
        self.levels = nn.Sequential(*levels)
        self.norm_out = NormSwish(widths[0])
        self.conv_out = nn.Conv2d(widths[0], pixels, 3, padding=1)

    def forward(self, z_BCHW: Tensor, linear_BCHW: Tensor | None = None) -> Tensor:
        """`linear_BCHW`: the linear image at 1/stem of its size, each block of stem×stem pixels as channels."""
        x_BCHW = self.conv_in(z_BCHW)
        x_BCHW = x_BCHW + averaged(z_BCHW, x_BCHW.shape[1]) if self.shortcut else x_BCHW
        blocks = list(self.levels)
        for block in blocks[: self.coarse]:
            x_BCHW = block(x_BCHW)
        if self.conv_linear is not None:
            x_BCHW = x_BCHW + self.conv_linear(linear_BCHW)
        for block in blocks[self.coarse :]:
            x_BCHW = block(x_BCHW)
        return self.norm_out(x_BCHW)
