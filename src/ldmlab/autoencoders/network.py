"""What the autoencoder needs of its network.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn


class Network(nn.Module):
    """Encoder and decoder of one first stage: `ConvNetwork` (the paper's), `ResidualNetwork`, `PCANetwork`, `IdentityNetwork`."""

    f: int  # down-sampling factor
    image_channels: int = 3  # of the images that it takes
    c: int  # latent channels
    fits: bool = False  # whether `fit_linear` takes values from the training images before training
    fit_images: int | None = None  # how many of them; None is all

    image_size: int | None = None  # side of the only images it takes; None is any multiple of f
    least_images: int = 0  # training images that `fit_linear` needs

    @property
    def last_layer(self) -> nn.Parameter | None:
        """Weight of the last convolution, where the adaptive weight compares gradients; None when there is none."""
        return None

    @property
    def moments_layer(self) -> nn.Conv2d | None:
        """The layer whose output the regulariser gets, for it to initialise; None when there is none."""
        return None

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the latent does not depend on; none by default."""
        return iter(())

    @property
    def decoder_waits(self) -> bool:
        """Whether `fit_decoder` is needed even where the regulariser hands the latent on as it is."""
        return False

    def fit_linear(self, images: Iterable[Tensor]) -> None:
        """Closed-form values from batches [B, 3, ·, ·] in [-1, 1], gone through once; nothing by default."""

    @property
    def encoder_waits(self) -> bool:
        """Whether `fit_encoder` is needed after `fit_linear`."""
        return False

    def fit_encoder(self, images: Iterable[Tensor]) -> None:
        """Closed-form values of the encoder that need those of `fit_linear` first; the same images; nothing by default."""

    def encode_at_start(self, image_BCHW: Tensor) -> Tensor:
        """What `encode` gives right after `fit_linear`; a network that knows a shorter way takes it."""
        return self.encode(image_BCHW)

    def fit_decoder(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Closed-form values of the decoder from (what the decoder reads, image), gone through once; nothing by default."""

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → [B, channels_in(c), H/f, W/f]."""
        raise NotImplementedError

    def decode_features(self, z_BCHW: Tensor) -> Tensor:
        """Raw latent → the map that the last convolution reads."""
        raise NotImplementedError

    def last_input(self, features_BCHW: Tensor) -> Tensor:
        """Of what `decode_features` gives, the part that the last convolution reads: all of it by default."""
        return features_BCHW

    def to_image(self, features_BCHW: Tensor) -> Tensor:
        """The last convolution: → [B, 3, H, W], not clamped."""
        raise NotImplementedError
