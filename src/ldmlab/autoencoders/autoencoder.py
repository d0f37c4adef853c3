"""The first stage, for every f: a network, a regulariser, and the standardisation of the latent.

State-dict names: official name ↔ `network.` + official name, and `quantize.` ↔ `regulariser.`; `scale` and `shift` are
ours.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.network import Network
from ldmlab.autoencoders.regularisers.base import Posterior, Regulariser
from ldmlab.autoencoders.tiles import tiled
from ldmlab.errors import ConfigError


class Reconstruction(NamedTuple):
    """Result of the training path."""

    image_BCHW: Tensor  # not clamped
    loss: Tensor  # the regulariser's, weighted, scalar
    stats: dict[str, Tensor]  # the regulariser's, detached scalars
    features_BCHW: Tensor  # what the decoder's last convolution read; the adaptive weight needs it


class Autoencoder(nn.Module):
    """Image [-1, 1] ↔ latent of c channels at 1/f of the size.

    The *raw* latent is the regulariser's sample. The latent that leaves `sample`/`encode` and enters `decode` is
    standardised: z = (raw − shift) · scale, with `shift` 0 and `scale` 1 until `set_scale` (paper App. G). The training
    path, `forward`, is raw.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, regulariser: Regulariser):
        super().__init__()
        self.network = network
        self.regulariser = regulariser
        if network.moments_layer is not None:
            regulariser.initialise(network.moments_layer)
        self.latents_frozen = False
        self.tile: int | None = None  # pixels a side; larger images go in tiles when nothing is trained
        self.register_buffer("scale", torch.ones(self.c, 1, 1))
        self.register_buffer("shift", torch.zeros(self.c, 1, 1))

    @property
    def f(self) -> int:
        """Down-sampling factor."""
        return self.network.f

    @property
    def c(self) -> int:
        """Latent channels."""
        return self.network.c

    @property
    def last_layer(self) -> nn.Parameter | None:
        """Weight of the decoder's last convolution; None for identity."""
        return self.network.last_layer

    @property
    def stochastic(self) -> bool:
        """Whether `sample` makes use of noise."""
        return self.regulariser.stochastic

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(c, H, W) for square images of this size. Raises ConfigError when f does not divide it."""
        if resolution % self.f or resolution < self.f:
            below, above = resolution // self.f * self.f, -(-resolution // self.f) * self.f
            valid = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"data.resolution={resolution} is not a multiple of ae's f={self.f}; the nearest that is: {valid}."
            )
        return self.c, resolution // self.f, resolution // self.f

    def moments(self, image_BCHW: Tensor) -> Tensor:
        """The encoder's output: KL mean and log-variance (2c), VQ vectors not yet quantised, identity the image."""
        if self.tile is None or self.training:
            return self.network.encode(image_BCHW)
        return tiled(self.network.encode, image_BCHW, self.tile, self.tile // 4, 1 / self.f)

    def sample(self, moments_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """Moments → standardised latent; without noise the posterior's mean."""
        return (self.regulariser.sample(moments_BCHW, noise_BCHW) - self.shift) * self.scale

    def posterior(self, moments_BCHW: Tensor) -> Posterior:
        """Mean and variance of the raw latent (for `scale.LatentStatistics`)."""
        return self.regulariser.posterior(moments_BCHW)

    def encode(self, image_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """Image → standardised latent; without noise the posterior's mean."""
        return self.sample(self.moments(image_BCHW), noise_BCHW)

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Standardised latent → image, not clamped. VQ quantises first."""
        return self._image(self.regulariser.project(z_BCHW / self.scale + self.shift))

    def decode_with_slope(self, z_BCHW: Tensor) -> Tensor:
        """`decode`, with a gradient where VQ's choice of a code has none: it passes straight through, as in training."""
        raw_BCHW = z_BCHW / self.scale + self.shift
        return self._image(raw_BCHW + (self.regulariser.project(raw_BCHW) - raw_BCHW).detach())

    def _image(self, raw_BCHW: Tensor) -> Tensor:
        if self.tile is None or self.training:
            return self._decode(raw_BCHW)
        return tiled(self._decode, raw_BCHW, self.tile // self.f, self.tile // 4 // self.f, self.f)

    def _decode(self, raw_BCHW: Tensor) -> Tensor:
        return self.network.to_image(self.network.decode_features(raw_BCHW))

    def forward(self, image_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Reconstruction:
        """The training path: encode, regularise, decode. The noise has the latent's shape; None takes the mean."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.latents_frozen):
            z_BCHW, loss, stats = self.regulariser(self.moments(image_BCHW), noise_BCHW)
        stats = {**stats, "latent_std": z_BCHW.detach().float().std()}
        features_BCHW = self.network.decode_features(z_BCHW)
        image_BCHW = self.network.to_image(features_BCHW)
        return Reconstruction(image_BCHW, loss, stats, self.network.last_input(features_BCHW))

    @torch.no_grad()
    def fit_linear(self, images: Callable[[], Iterable[Tensor]]) -> None:
        """Closed-form values before training, for a network or codebook that starts from the training images.

        images   gives the same batches [B, 3, ·, ·] in [-1, 1] each time it is called: once or twice for the network, once
                 for a codebook, once for a decoder that reads more than its own latent or one that was quantised
        """
        if self.network.fits:
            self.network.fit_linear(images())
            if self.network.encoder_waits:
                self.network.fit_encoder(images())
        if self.regulariser.starts:
            self.regulariser.start(self.network.encode_at_start(image_BCHW) for image_BCHW in images())
        if self.network.fits and (self.network.decoder_waits or self.regulariser.quantises):
            self.network.fit_decoder((self._read_by_decoder(image_BCHW), image_BCHW) for image_BCHW in images())

    def _read_by_decoder(self, image_BCHW: Tensor) -> Tensor:
        return self.regulariser.project(self.regulariser.sample(self.network.encode_at_start(image_BCHW), None))

    def freeze_latents(self) -> None:
        """From now on only the decoder learns: the latents, their scale and every denoiser trained on them stay valid."""
        self.requires_grad_(False)
        for parameter in self.network.decoder_parameters():
            parameter.requires_grad_(True)
        self.latents_frozen = True

    def set_scale(self, scale: Tensor | float, shift: Tensor | float = 0.0) -> None:
        """Set the standardisation: numbers, or tensors of shape [1, 1, 1], [c, 1, 1]; stored per channel and saved with
        the weights.

        Raises ValueError unless every scale is finite and positive and every shift finite.
        """
        for buffer, value in ((self.scale, scale), (self.shift, shift)):
            new = torch.as_tensor(value, dtype=buffer.dtype, device=buffer.device).expand(buffer.shape)
            if not new.isfinite().all() or (buffer is self.scale and not (new > 0).all()):
                raise ValueError(f"latent scale must be finite and positive, and shift finite; got {scale} and {shift}")
            buffer.copy_(new)
