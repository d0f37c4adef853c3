"""A linear path that sees the whole image: principal components of images of one size, each at the patch it resembles.

Where f leaves few positions, neighbouring patches share most of what c numbers each can say, and what is usual differs from
place to place. The best linear map of a whole image to c·h·w numbers uses both. Its components have no place, so they are
rotated to lie as near as possible to the components of single patches (the orthogonal Procrustes problem, Schönemann 1966):
the span, and so the image that comes back, stay the same, and channel j at a position still says what it says elsewhere.

Shape letters: B batch, C latent channels, H W space of the latent, P = 3·f·f values of a patch, Q coefficients of a patch,
D = Q·H·W coefficients of an image, K = C·H·W numbers of its latent.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ldmlab.autoencoders.lapped import NormalEquations, level
from ldmlab.autoencoders.linear_path import (
    LinearMap,
    Moments,
    coefficients,
    coefficients_kept,
    decoder_of,
    patch_moments,
    principal_components,
)
from ldmlab.autoencoders.regularisers.base import widen
from ldmlab.errors import ConfigError, TrainingError
from ldmlab.networks.blocks import no_autocast

WITHOUT = "ae.network.image_size=null ae.network.mirror=false"  # the way out of what it cannot do
MOST_COEFFICIENTS = 6_144  # of an image: eigenvectors of a matrix of that side take about a minute


class WholeImagePath(LinearMap):
    """Image ↔ latent by the c·h·w principal components of images of `image_size` pixels a side, in closed form.

    whiten   True: each channel of unit variance over images and positions. False: one scale for all
    mirror   mirrored training images count too, which suits photographs and leaves fewer accidents in few images

    It reads the first Q components of each patch, which is where the components of an image lie: `coefficients_kept`, fewer
    where an image has so many positions that they would exceed MOST_COEFFICIENTS. Everything is a buffer.
    Raises ConfigError for a size that is no multiple of f, or that leaves fewer than 2·c coefficients a position (or
    than a patch has).
    """

    mean_P: Tensor
    basis_QP: Tensor
    analysis_KD: Tensor
    mean_D: Tensor
    synthesis_KD: Tensor
    bias_D: Tensor
    std_C: Tensor
    encoder_waits = True
    decoder_waits = False

    def __init__(
        self, f: int, c: int, image_size: int, whiten: bool = True, mirror: bool = False, image_channels: int = 3
    ):
        super().__init__()
        if image_size % f or image_size < f:
            raise ConfigError(
                f"ae.network.image_size={image_size} (data.resolution, where it follows that) is not a multiple of f={f}. Set one: "
                f"{max(1, image_size // f) * f} or {(image_size // f + 1) * f}."
            )
        self.f, self.c, self.side, self.whiten, self.mirror = f, c, image_size // f, whiten, mirror
        size, positions = image_channels * f * f, self.side**2
        q = min(coefficients_kept(f, c, image_channels), MOST_COEFFICIENTS // positions)
        if q < min(2 * c, size):
            raise ConfigError(
                f"ae.network.image_size={image_size}: with f={f} an image has {positions:,} positions, and the linear path of whole "
                f"images reads {MOST_COEFFICIENTS:,} coefficients at most, so {q} a position; it must be at least twice c={c}. Set "
                f"{WITHOUT} ae.network.window=3 ae.network.rounds=12, which reads neighbouring patches instead."
            )
        k, d = c * positions, q * positions
        self.image_size, self.least_images = image_size, k // (2 if mirror else 1) + 1
        self.register_buffer("mean_P", torch.zeros(size))
        self.register_buffer("basis_QP", torch.zeros(q, size))
        self.register_buffer("analysis_KD", torch.zeros(k, d))
        self.register_buffer("mean_D", torch.zeros(d))
        self.register_buffer("synthesis_KD", torch.zeros(k, d))
        self.register_buffer("bias_D", torch.zeros(d))
        self.register_buffer("std_C", torch.ones(c))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, f·H, f·W] → [B, c, H, W]; never in half precision. Raises ConfigError for images of another size."""
        side = self.side * self.f
        if image_BCHW.shape[2:] != (side, side):
            raise ConfigError(
                f"ae.network.image_size={side}: this linear path takes images of {side}x{side}, not {image_BCHW.shape[2]}x"
                f"{image_BCHW.shape[3]}. Set ae.network.image_size to data.resolution and ae.tile=null, or {WITHOUT}."
            )
        with no_autocast(image_BCHW.device.type):
            z_BK = (self._coefficients(image_BCHW) - self.mean_D) @ self.analysis_KD.T
            return z_BK.view(-1, self.c, self.side, self.side) / self.std_C.view(-1, 1, 1)

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """[B, c, H, W] → patches [B, P, H, W], never in half precision."""
        with no_autocast(z_BCHW.device.type):
            z_BCHW = widen(z_BCHW) * self.std_C.view(-1, 1, 1)
            coefficient_BD = z_BCHW.flatten(1) @ self.synthesis_KD + self.bias_D
            coefficient_BQHW = coefficient_BD.view(len(z_BCHW), -1, self.side, self.side)
            return F.conv2d(coefficient_BQHW, self.basis_QP.T[:, :, None, None], self.mean_P)

    def _coefficients(self, image_BCHW: Tensor) -> Tensor:
        """Of every patch in its first Q components, [B, D] in the order Q H W."""
        return coefficients(widen(image_BCHW), self.basis_QP, self.mean_P, self.f).flatten(1)

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Components of single patches, in one pass. Raises TrainingError without images."""
        moments = patch_moments(self.f, images)
        self.mean_P.copy_(moments.mean())
        self.basis_QP.copy_(principal_components(moments.covariance())[1][: len(self.basis_QP)])

    @torch.no_grad()
    def fit_encoder(self, images: Iterable[Tensor]) -> None:
        """Components of whole images, in one pass, turned towards those of patches.

        Raises TrainingError when the images vary in fewer directions than the latent has numbers.
        """
        moments: Moments | None = None
        for image_BCHW in images:
            moments = moments or Moments(len(self.mean_D), image_BCHW.device)
            moments.update(self._coefficients(image_BCHW))
            if self.mirror:
                moments.update(self._coefficients(image_BCHW.flip(3)))
        assert moments is not None  # `fit` saw images
        variance_D, basis_DD = principal_components(moments.covariance())
        k = len(self.analysis_KD)
        if not variance_D[k - 1] > 1e-10:
            raise TrainingError(
                f"ae.network.image_size={self.side * self.f}: the training images vary in {int((variance_D > 1e-10).sum())} "
                f"directions only, and the latent has {k} numbers. Set {WITHOUT}, or take more images."
            )
        placed_KD = nearest_to_patches(basis_DD[:k], self.c, self.side**2)
        variance_K = ((placed_KD @ basis_DD.T).square() * variance_D).sum(1)
        variance_C = variance_K.view(self.c, -1).mean(1)
        self.std_C.copy_(level(variance_C, self.whiten).sqrt())
        self.analysis_KD.copy_(placed_KD)
        self.synthesis_KD.copy_(placed_KD)
        self.mean_D.copy_(moments.mean())
        self.bias_D.copy_(moments.mean())

    @torch.no_grad()
    def fit_decoder(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Decoding becomes the least-squares map from (latent [B, c, H, W], image) to the coefficients, in one pass."""
        equations = NormalEquations()
        for z_BCHW, image_BCHW in pairs:
            z_BK = (z_BCHW * self.std_C.view(-1, 1, 1)).flatten(1)
            equations.update(torch.cat([z_BK, z_BK.new_ones(len(z_BK), 1)], dim=1), self._coefficients(image_BCHW))
        weight_KD, bias_D = decoder_of(equations)
        self.synthesis_KD.copy_(weight_KD)
        self.bias_D.copy_(bias_D)


def nearest_to_patches(basis_KD: Tensor, c: int, positions: int) -> Tensor:
    """Orthonormal rows of the same span, [K, D], nearest to the first c coefficients of each position.

    With T [K, K] the basis at those coefficients, the rotation R that minimises ‖Rᵀ basis − coefficients‖ is the orthogonal
    polar factor of T.
    """
    U, _, Vh = torch.linalg.svd(basis_KD[:, : c * positions])
    return (U @ Vh).T @ basis_KD
