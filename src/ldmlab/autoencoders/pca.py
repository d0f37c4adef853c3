"""The linear first stage: principal components of f×f patches (Karhunen–Loève), in closed form from the training images.

Among all linear maps of a patch to c numbers and back it loses the least squared error, so it is the bar for every first
stage that is trained, and the start of those that have it as their linear path (`residual.ResidualNetwork`).

Shape letters: B batch, C channels, H W space of the latent, P = 3·f·f values of a patch, Q = c·window² taps (and one
constant), M = B·H·W patches.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.autoencoders.lapped import lapped, taps, windowed
from ldmlab.autoencoders.network import Network
from ldmlab.autoencoders.regularisers.base import widen
from ldmlab.errors import ConfigError, TrainingError
from ldmlab.networks.blocks import no_autocast

IMAGE_CHANNELS = 3
LAPPED_POSITIONS = 400_000  # patches that the lapped encoder is found on, at most
COEFFICIENTS_PER_CHANNEL, MIN_COEFFICIENTS = 4, 48  # components of a patch that the lapped encoder reads
RIDGE = 1e-6  # of the taps' mean square, added to each: neighbours repeat one another


def patches(image_BCHW: Tensor, f: int) -> Tensor:
    """[B, 3, f·H, f·W] → [M, P]; P in the order of `pixel_unshuffle`: colour, row, column."""
    return F.pixel_unshuffle(image_BCHW, f).permute(0, 2, 3, 1).flatten(0, 2)


class PatchMoments:
    """Count, sum and products of patches over any number of batches, float64."""

    def __init__(self, f: int, device: torch.device | str = "cpu"):
        size = IMAGE_CHANNELS * f * f
        self.f, self.count = f, 0
        self.sum_P = torch.zeros(size, dtype=torch.float64, device=device)
        self.product_PP = torch.zeros(size, size, dtype=torch.float64, device=device)

    def update(self, image_BCHW: Tensor) -> None:
        """Take in a batch of images."""
        patch_MP = patches(image_BCHW, self.f).double()
        self.count += len(patch_MP)
        self.sum_P += patch_MP.sum(0)
        self.product_PP += patch_MP.T @ patch_MP

    def mean(self) -> Tensor:
        """float64 [P]."""
        return self.sum_P / self.count

    def covariance(self) -> Tensor:
        """Of the population (divisor M), float64 [P, P]."""
        mean_P = self.mean()
        return self.product_PP / self.count - mean_P[:, None] * mean_P[None, :]


def principal_components(covariance_PP: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [P], largest first, and orthonormal components as rows [P, P]; the largest entry of each is positive."""
    variance_P, vector_PP = torch.linalg.eigh(covariance_PP)
    basis_PP = vector_PP.T.flip(0)
    largest_P1 = basis_PP.abs().argmax(dim=1, keepdim=True)
    sign_P1 = torch.where(basis_PP.gather(1, largest_P1) < 0, -1.0, 1.0).to(basis_PP)
    return variance_P.flip(0).clamp_min(0), basis_PP * sign_P1


class LinearPath(nn.Module):
    """Image ↔ c components of each f×f patch: z = (x − mean) · basisᵀ / std and x̂ = z · std · basis + mean.

    whiten   True: std is each component's own, so each latent channel has unit variance. False: one for all, so that distances
             between latents are distances between pixels (what a codebook should see)
    window   1: decoding is that transpose. 3, 5: the least-squares map from window×window neighbouring latents to the patch,
             still linear and in closed form. It needs `fit_decoder`
    rounds   0: encoding is that projection. More: the encoder reads window×window patches too, after so many rounds of
             alternating least squares (`lapped`); then z is no longer of orthonormal components. It needs `fit_encoder`

    Everything is a buffer: saved with the weights, trained by nobody. Before `fit` it maps everything to 0.
    """

    mean_P: Tensor
    basis_CP: Tensor
    std_C: Tensor
    taps_PCWW: Tensor
    bias_P: Tensor
    basis_QP: Tensor  # these three with rounds > 0 alone
    context_CQWW: Tensor
    offset_C: Tensor

    def __init__(self, f: int, c: int, window: int = 1, whiten: bool = True, rounds: int = 0):
        super().__init__()
        size = IMAGE_CHANNELS * f * f
        self.f, self.c, self.window, self.whiten, self.rounds = f, c, window, whiten, rounds
        self.register_buffer("mean_P", torch.zeros(size))
        self.register_buffer("basis_CP", torch.zeros(c, size))
        if rounds:
            q = min(size, max(COEFFICIENTS_PER_CHANNEL * c, MIN_COEFFICIENTS))
            self.register_buffer("basis_QP", torch.zeros(q, size))
            self.register_buffer("context_CQWW", torch.zeros(c, q, window, window))
            self.register_buffer("offset_C", torch.zeros(c))
        self._positions = 0  # that `fit` saw
        self.register_buffer("std_C", torch.ones(c))
        self.register_buffer("taps_PCWW", torch.zeros(size, c, window, window))
        self.register_buffer("bias_P", torch.zeros(size))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, f·H, f·W] → [B, c, H, W]; never in half precision."""
        with no_autocast(image_BCHW.device.type):
            if self.rounds:
                return windowed(self._coefficients(widen(image_BCHW)), self.context_CQWW, self.offset_C)
            weight_CP = self.basis_CP / self.std_C[:, None]
            bias_C = -weight_CP @ self.mean_P
            weight_C3ff = weight_CP.view(self.c, IMAGE_CHANNELS, self.f, self.f)
            return F.conv2d(widen(image_BCHW), weight_C3ff, bias_C, stride=self.f)

    def _coefficients(self, image_BCHW: Tensor) -> Tensor:
        """Of each patch in the first q components, not scaled, [B, Q, H, W]."""
        weight_Q3ff = self.basis_QP.view(-1, IMAGE_CHANNELS, self.f, self.f)
        return F.conv2d(image_BCHW, weight_Q3ff, -self.basis_QP @ self.mean_P, stride=self.f)

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """[B, c, H, W] → patches [B, P, H, W], never in half precision; `pixel_shuffle` by f makes the image of them."""
        with no_autocast(z_BCHW.device.type):
            return windowed(widen(z_BCHW), self.taps_PCWW, self.bias_P)

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Components of all patches of the batches [B, 3, ·, ·], in one pass; decoding becomes their transpose.

        Raises TrainingError when there is no image or a component does not vary.
        """
        moments: PatchMoments | None = None
        for image_BCHW in images:
            moments = moments or PatchMoments(self.f, image_BCHW.device)
            moments.update(image_BCHW)
        if moments is None:
            raise TrainingError("the linear first stage found no training image to take its components from.")
        variance_P, basis_PP = principal_components(moments.covariance())
        if not variance_P[self.c - 1] > 1e-10:
            raise TrainingError(
                f"ae.network.c={self.c}: the training images' {self.f}x{self.f} patches vary in "
                f"{int((variance_P > 1e-10).sum())} directions only. Take a smaller ae.network.c."
            )
        variance_C = variance_P[: self.c]
        std_C = (variance_C if self.whiten else variance_C.mean().expand_as(variance_C)).sqrt()
        self._positions = moments.count
        if self.rounds:
            self.basis_QP.copy_(basis_PP[: len(self.basis_QP)])
        self.mean_P.copy_(moments.mean())
        self.basis_CP.copy_(basis_PP[: self.c])
        self.std_C.copy_(std_C)
        middle = self.window // 2
        self.taps_PCWW.zero_()
        self.taps_PCWW[:, :, middle, middle] = (basis_PP[: self.c] * std_C[:, None]).T.to(self.taps_PCWW.dtype)
        self.bias_P.copy_(moments.mean())

    @torch.no_grad()
    def fit_encoder(self, images: Iterable[Tensor]) -> None:
        """rounds > 0: the lapped encoder, from images spread evenly over those of `fit` in the same order."""
        every = -(-self._positions // LAPPED_POSITIONS)
        parts, before = [], 0
        for image_BCHW in images:
            chosen = image_BCHW[(-before) % every :: every]
            before += len(image_BCHW)
            if len(chosen):
                parts.append(self._coefficients(chosen))
        encoder = lapped(torch.cat(parts), self.c, self.window, self.rounds, self.whiten)
        self.context_CQWW.copy_(encoder.context_CQWW)
        self.offset_C.copy_(encoder.offset_C)

    @torch.no_grad()
    def fit_decoder(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Decoding becomes the least-squares map from (latent [B, c, H, W], image) to the patches, in one pass."""
        normal_QQ: Tensor | None = None
        target_QP = torch.zeros(0)
        count = 0
        for z_BCHW, image_BCHW in pairs:
            tap_MQ = taps(z_BCHW, self.window).double()
            patch_MP = patches(image_BCHW, self.f).double()
            if normal_QQ is None:
                normal_QQ, target_QP = tap_MQ.T @ tap_MQ, tap_MQ.T @ patch_MP
            else:
                normal_QQ += tap_MQ.T @ tap_MQ
                target_QP += tap_MQ.T @ patch_MP
            count += len(tap_MQ)
        if normal_QQ is None:
            raise TrainingError("the linear decoder found no training image to be fitted to.")
        ridge_Q = torch.full_like(normal_QQ[0], RIDGE * count)
        ridge_Q[-1] = 0  # not the constant
        weight_QP = torch.linalg.solve(normal_QQ + ridge_Q.diag(), target_QP)
        self.taps_PCWW.copy_(weight_QP[:-1].T.reshape(self.taps_PCWW.shape))
        self.bias_P.copy_(weight_QP[-1])


class PCANetwork(Network):
    """Principal components of f×f patches, c of them; nothing is trained.

    f           patch size in pixels, 1 to 32
    c           components, at most 3·f·f
    window      latents a side that the decoder reads for a patch, see `LinearPath`; 1 is PCA
    rounds      0: each latent is of its own patch; more: of window×window patches (a lapped transform), see `LinearPath`
    whiten      True: each channel of unit variance; False: one scale for all, see `LinearPath`
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
    ):
        super().__init__()
        check_linear(f, c, fit_images, window, rounds)
        self.f, self.c, self.fit_images = f, c, fit_images
        self.linear = LinearPath(f, c, window, whiten, rounds)
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
        return self.linear.rounds > 0

    def fit_encoder(self, images: Iterable[Tensor]) -> None:
        """See `LinearPath.fit_encoder`."""
        self.linear.fit_encoder(images)

    def fit_decoder(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """See `LinearPath.fit_decoder`."""
        self.linear.fit_decoder(pairs)

    @property
    def decoder_waits(self) -> bool:
        """Whether decoding is more than the transpose and so needs `fit_decoder` even for an unchanged latent."""
        return self.linear.window > 1

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.quant_conv(self.linear.encode(image_BCHW))

    def decode_features(self, z_BCHW: Tensor) -> Tensor:
        """Latent → patches, [B, P, H, W]."""
        return self.linear.decode(z_BCHW)

    def to_image(self, features_BCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(features_BCHW, self.f)


def check_linear(f: int, c: int, images: int | None, window: int, rounds: int) -> None:
    """Raises ConfigError for values that no linear first stage has."""
    if not 1 <= f <= 32:
        raise ConfigError(f"ae.network.f={f} must be between 1 and 32.")
    most = IMAGE_CHANNELS * f * f
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
