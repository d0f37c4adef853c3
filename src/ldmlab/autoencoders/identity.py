"""f = 1: the image is the latent, so pixel-space diffusion is no special case.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor

from ldmlab.autoencoders.network import Network
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Width


class IdentityNetwork(Network):
    """Both directions return their input; f = 1, c = 3 (data.channels), no parameters, nothing to train.

    Raises ConfigError for c other than that and for a regulariser that wants other channels (take ae/regulariser=none).
    """

    f = 1

    def __init__(
        self,
        channels_in: Annotated[Callable[[int], int], Given],
        c: Width = 3,
        image_channels: Annotated[int, Given] = 3,
    ):
        super().__init__()
        if c != image_channels:
            way = "Leave it out" if image_channels == 3 else f"Set ae.network.c={image_channels}"
            raise ConfigError(
                f"ae.network.c={c}: the latent of ae=identity is the image, so c is {image_channels}. {way}."
            )
        self.image_channels = image_channels
        if channels_in(c) != c:
            raise ConfigError(
                f"ae=identity hands over {c} channels, ae.regulariser wants {channels_in(c)}; take ae/regulariser=none."
            )
        self.c = c

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW

    def decode_features(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW

    def to_image(self, features_BCHW: Tensor) -> Tensor:
        return features_BCHW
