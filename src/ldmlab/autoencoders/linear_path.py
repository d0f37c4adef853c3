"""The linear map beside a network, or in its place: principal components of f×f patches (Karhunen–Loève), in closed form.

Among all linear maps of a patch to c numbers and back it loses the least squared error.

Shape letters: B batch, C channels, H W space of the latent, P = 3·f·f values of a patch (of a grey image f·f), Q = c·window² taps (and one
constant), M = B·H·W patches.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.autoencoders.lapped import NormalEquations, lapped, level, taps, windowed
from ldmlab.autoencoders.regularisers.base import widen
from ldmlab.errors import TrainingError
from ldmlab.networks.blocks import no_autocast

LAPPED_POSITIONS = 400_000  # patches that the lapped encoder is found on, at most
COEFFICIENTS_PER_CHANNEL, MIN_COEFFICIENTS = 4, 48  # components of a patch that the lapped encoder reads
RIDGE = 1e-6  # of the taps' mean square, added to each: neighbours repeat one another


def patches(image_BCHW: Tensor, f: int) -> Tensor:
    """[B, 3, f·H, f·W] → [M, P]; P in the order of `pixel_unshuffle`: colour, row, column."""
    return F.pixel_unshuffle(image_BCHW, f).permute(0, 2, 3, 1).flatten(0, 2)


def images_of(patch_MP: Tensor, shape: Sequence[int], f: int) -> Tensor:
    """The inverse of `patches`: → images of the shape [B, 3, f·H, f·W]."""
    B, _, height, width = shape
    patch_BPHW = patch_MP.view(B, height // f, width // f, -1).permute(0, 3, 1, 2)
    return F.pixel_shuffle(patch_BPHW, f)


class Moments:
    """Count, sum and products of rows [M, P] over any number of batches, float64."""

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.sum_P = torch.zeros(size, dtype=torch.float64, device=device)
        self.product_PP = torch.zeros(size, size, dtype=torch.float64, device=device)

    def update(self, row_MP: Tensor) -> None:
        """Take in a batch of rows."""
        row_MP = row_MP.double()
        self.count += len(row_MP)
        self.sum_P += row_MP.sum(0)
        self.product_PP += row_MP.T @ row_MP

    def mean(self) -> Tensor:
        """float64 [P]."""
        return self.sum_P / self.count

    def covariance(self) -> Tensor:
        """Of the population (divisor M), float64 [P, P]."""
        mean_P = self.mean()
        return self.product_PP / self.count - mean_P[:, None] * mean_P[None, :]


def patch_moments(f: int, images: Iterable[Tensor]) -> Moments:
    """Of all f×f patches of the batches [B, 3, ·, ·]. Raises TrainingError when there is no image."""
    moments: Moments | None = None
    for image_BCHW in images:
        moments = moments or Moments(image_BCHW.shape[1] * f * f, image_BCHW.device)
        moments.update(patches(image_BCHW, f))
    if moments is None:
        raise TrainingError("the linear first stage found no training image to take its components from.")
    return moments


def coefficients(image_BCHW: Tensor, basis_QP: Tensor, mean_P: Tensor, f: int) -> Tensor:
    """Of each f×f patch in the components of the basis, not scaled, [B, Q, H, W]."""
    weight_Q3ff = basis_QP.view(len(basis_QP), -1, f, f)
    return F.conv2d(image_BCHW, weight_Q3ff, -basis_QP @ mean_P, stride=f)


def decoder_of(equations: NormalEquations) -> tuple[Tensor, Tensor]:
    """Weight and constant of a linear decoder; its taps have unit variance or less. Raises TrainingError without images."""
    if not equations.count:
        raise TrainingError("the linear decoder found no training image to be fitted to.")
    return equations.solve(RIDGE * equations.count)


def coefficients_kept(f: int, c: int, image_channels: int = 3) -> int:
    """Q: components of a patch that a linear path reads when it looks beyond the patch."""
    return min(image_channels * f * f, max(COEFFICIENTS_PER_CHANNEL * c, MIN_COEFFICIENTS))


def principal_components(covariance_PP: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [P], largest first, and orthonormal components as rows [P, P]; the largest entry of each is positive."""
    variance_P, vector_PP = torch.linalg.eigh(covariance_PP)
    basis_PP = vector_PP.T.flip(0)
    largest_P1 = basis_PP.abs().argmax(dim=1, keepdim=True)
    sign_P1 = torch.where(basis_PP.gather(1, largest_P1) < 0, -1.0, 1.0).to(basis_PP)
    return variance_P.flip(0).clamp_min(0), basis_PP * sign_P1


class LinearMap(nn.Module):
    """What a network needs of the linear map beside it: `LinearPath` or `whole_image.WholeImagePath`."""

    f: int
    c: int
    image_size: int | None = None  # side of the only images it takes
    least_images: int = 0  # training images that the fit needs
    encoder_waits: bool  # whether `fit_encoder` is needed after `fit`
    decoder_waits: bool  # whether `fit_decoder` is needed even for an unchanged latent

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, f·H, f·W] → [B, c, H, W]."""
        raise NotImplementedError

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """[B, c, H, W] → patches [B, P, H, W]; `pixel_shuffle` by f makes the image of them."""
        raise NotImplementedError

    def fit(self, images: Iterable[Tensor]) -> None:
        """Closed-form values from batches [B, 3, ·, ·], in one pass."""
        raise NotImplementedError

    def fit_encoder(self, images: Iterable[Tensor]) -> None:
        """Those of the encoder that need `fit` first; nothing by default."""

    def fit_decoder(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Those of the decoder from (latent, image)."""
        raise NotImplementedError


class LinearPath(LinearMap):
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

    def __init__(self, f: int, c: int, window: int = 1, whiten: bool = True, rounds: int = 0, image_channels: int = 3):
        super().__init__()
        size = image_channels * f * f
        self.f, self.c, self.window, self.whiten, self.rounds = f, c, window, whiten, rounds
        self.register_buffer("mean_P", torch.zeros(size))
        self.register_buffer("basis_CP", torch.zeros(c, size))
        if rounds:
            q = coefficients_kept(f, c, image_channels)
            self.register_buffer("basis_QP", torch.zeros(q, size))
            self.register_buffer("context_CQWW", torch.zeros(c, q, window, window))
            self.register_buffer("offset_C", torch.zeros(c))
        self.encoder_waits, self.decoder_waits = rounds > 0, window > 1
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
            weight_C3ff = weight_CP.view(self.c, -1, self.f, self.f)
            return F.conv2d(widen(image_BCHW), weight_C3ff, bias_C, stride=self.f)

    def _coefficients(self, image_BCHW: Tensor) -> Tensor:
        return coefficients(image_BCHW, self.basis_QP, self.mean_P, self.f)

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """[B, c, H, W] → patches [B, P, H, W], never in half precision; `pixel_shuffle` by f makes the image of them."""
        with no_autocast(z_BCHW.device.type):
            return windowed(widen(z_BCHW), self.taps_PCWW, self.bias_P)

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Components of all patches of the batches [B, 3, ·, ·], in one pass; decoding becomes their transpose.

        Raises TrainingError when there is no image or a component does not vary.
        """
        moments = patch_moments(self.f, images)
        directions = moments.count - 1  # so few patches vary in no more: found without the decomposition, 5 s at f = 32
        if directions >= self.c:
            variance_P, basis_PP = principal_components(moments.covariance())
            directions = int((variance_P > 1e-10).sum())
        if directions < self.c:
            raise TrainingError(
                f"ae.network.c={self.c}: the training images' {self.f}x{self.f} patches vary in "
                f"{directions} directions only. Take a smaller ae.network.c."
            )
        std_C = level(variance_P[: self.c], self.whiten).sqrt()
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
        equations = NormalEquations()
        for z_BCHW, image_BCHW in pairs:
            equations.update(taps(z_BCHW, self.window), patches(image_BCHW, self.f))
        weight_QP, bias_P = decoder_of(equations)
        self.taps_PCWW.copy_(weight_QP.T.reshape(self.taps_PCWW.shape))
        self.bias_P.copy_(bias_P)
