"""What the autoencoder needs of its network.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Iterator

from torch import Tensor, nn


class Network(nn.Module):
    """Encoder and decoder of one first stage; `ConvNetwork` and `IdentityNetwork` are the two."""

    f: int  # down-sampling factor
    c: int  # latent channels

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

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] → [B, channels_in(c), H/f, W/f]."""
        raise NotImplementedError

    def decode_features(self, z_BCHW: Tensor) -> Tensor:
        """Raw latent → the map that the last convolution reads."""
        raise NotImplementedError

    def to_image(self, features_BCHW: Tensor) -> Tensor:
        """The last convolution: → [B, 3, H, W], not clamped."""
        raise NotImplementedError
