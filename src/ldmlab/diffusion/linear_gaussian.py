"""Gaussian latents under noise, in closed form: the best linear denoiser, what it still loses, and the loss that this means.

For z_t = alpha z_0 + sigma eps and z_0 of mean m and covariance U diag(v) Uᵀ, the linear denoiser of least squared error is

    E[z_0 | z_t] = m + U diag(alpha v / (alpha² v + sigma²)) Uᵀ (z_t - alpha m)

and its squared error in direction i is v sigma² / (alpha² v + sigma²) (Wiener's filter; docs/paper.md#gaussian-latents). For
Gaussian z_0 no denoiser does better. For any other z_0 of these moments its error is the same, and a network that has learnt
more of them than two moments falls below it.

Directions are orthonormal. `Whole` takes those of the full covariance; `Stationary` those of a latent whose statistics are
the same at each position: plane waves, and at each frequency the directions of the channels.

Shape letters: B batch, C channels, H W space, D = C·H·W elements = directions, E elements that differ in spread, T steps.
"""

import math

import torch
from torch import Tensor

from ldmlab.autoencoders.linear_path import Moments, principal_components
from ldmlab.diffusion.objectives import Objective

QUANTILES = 4000  # points of the distribution of t that a mean over it is taken from


class Whole:
    """Directions of the full covariance.

    Args:
        moments: of the latents as rows [B, D]; `variance_D` is added to the diagonal (of a posterior's samples).
        shape: (C, H, W).
    """

    words = "full covariance"

    def __init__(self, moments: Moments, shape: tuple[int, int, int], variance_D: Tensor | None = None):
        covariance_DD = moments.covariance()
        if variance_D is not None:
            covariance_DD = covariance_DD + torch.diag(variance_D.to(covariance_DD))
        self.mean_CHW = moments.mean().view(shape)
        self.variance_D, self.basis_DD = principal_components(covariance_DD)  # directions are rows

    def power(self, z_BCHW: Tensor) -> Tensor:
        """Squares of the coefficients of z less its mean, float64 [B, D]; their mean over the fitted latents is `variance_D`."""
        return ((z_BCHW.double() - self.mean_CHW).flatten(1) @ self.basis_DD.T).square()

    def per_element(self, value_TD: Tensor) -> Tensor:
        """Variances in the directions → variances of the elements, [T, D]."""
        return value_TD @ self.basis_DD.square()


class Stationary:
    """Plane waves times directions of the channels: the covariance of a latent that looks alike everywhere.

    The loss of its best denoiser is that of the best linear filter with the same taps at each position, on a latent that
    repeats beyond its edges: at least that of the full covariance. It needs C images and not C·H·W.
    """

    words = "stationary covariance: one spectrum for all positions"

    def __init__(self, shape: tuple[int, int, int]):
        C, H, W = shape
        self.count = 0
        self._sum_CHW = torch.zeros(shape, dtype=torch.float64)
        self._noise_C = torch.zeros(C, dtype=torch.float64)
        self._product_HWCC = torch.zeros(H, W, C, C, dtype=torch.complex128)

    def update(self, z_BCHW: Tensor, variance_BCHW: Tensor | None = None) -> None:
        """Take in a batch; `variance_BCHW`: of independent noise on top of it."""
        z_BCHW = z_BCHW.detach().cpu().double()
        wave_HWCB = torch.fft.fft2(z_BCHW, norm="ortho").permute(2, 3, 1, 0)
        self._product_HWCC += wave_HWCB @ wave_HWCB.mH
        self._sum_CHW += z_BCHW.sum(0)
        self.count += len(z_BCHW)
        if variance_BCHW is not None:
            self._noise_C += variance_BCHW.cpu().double().mean(dim=(2, 3)).sum(0)

    def finish(self) -> "Stationary":
        """Directions and variances of what was taken in."""
        self.mean_CHW = self._sum_CHW / self.count
        wave_HWC = torch.fft.fft2(self.mean_CHW, norm="ortho").permute(1, 2, 0)
        spectrum_HWCC = self._product_HWCC / self.count - wave_HWC[..., :, None] * wave_HWC[..., None, :].conj()
        spectrum_HWCC = spectrum_HWCC + torch.diag(self._noise_C / self.count)
        variance_HWC, self.basis_HWCC = torch.linalg.eigh(spectrum_HWCC)  # directions are columns
        self.variance_D = variance_HWC.clamp_min(0).flatten()
        return self

    def power(self, z_BCHW: Tensor) -> Tensor:
        """As `Whole.power`."""
        wave_BHWC = torch.fft.fft2(z_BCHW.double() - self.mean_CHW, norm="ortho").permute(0, 2, 3, 1)
        return (self.basis_HWCC.mH @ wave_BHWC[..., None]).abs().square().flatten(1)

    def per_element(self, value_TD: Tensor) -> Tensor:
        """As `Whole.per_element`, [T, C]: the same at each position."""
        H, W, C, _ = self.basis_HWCC.shape
        return value_TD @ self.basis_HWCC.abs().square().transpose(2, 3).reshape(-1, C) / (H * W)


Directions = Whole | Stationary


def gain(variance_D: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """alpha v / (alpha² v + sigma²): what the denoiser multiplies a direction of z_t - alpha m with."""
    return alpha * variance_D / (alpha**2 * variance_D + sigma**2)


def z0_error(variance_D: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Squared error of z_0 in each direction; `alpha`, `sigma` of any shape that broadcasts against [D]."""
    return variance_D * sigma**2 / (alpha**2 * variance_D + sigma**2)


def z0_error_of(power_BD: Tensor, variance_D: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The same of given latents, expected over the noise, mean over directions, [B]. power_BD: of `Directions.power`.

    (1 - alpha g)² p + sigma² g² with the gain g: for p = v it is `z0_error`.
    """
    gain_D = gain(variance_D, alpha, sigma)
    return ((1 - alpha * gain_D).square() * power_BD + (sigma * gain_D).square()).mean(dim=1)


def loss_floor(directions: Directions, objective: Objective) -> Tensor:
    """The loss of the best linear denoiser at each time, weighted as it is trained on, float64 [T].

    With objective.loss=l1 and huber it is that of Gaussian latents, whose errors are normal.
    """
    alpha_T, sigma_T = objective.schedule.levels()
    error_TD = z0_error(directions.variance_D, alpha_T[:, None], sigma_T[:, None])
    answer_TD = error_TD / objective.target.z0_error(alpha_T, sigma_T)[:, None]
    if objective.distance == "l2":
        floor_T = answer_TD.mean(dim=1)
    else:
        s_TE = directions.per_element(answer_TD).clamp_min(1e-300).sqrt()
        floor_T = (math.sqrt(2 / math.pi) * s_TE if objective.distance == "l1" else huber(s_TE, objective.delta)).mean(
            dim=1
        )
    weight_T = objective.weight(torch.arange(objective.schedule.T))
    return floor_T if weight_T is None else weight_T * floor_T


def huber(s: Tensor, delta: float) -> Tensor:
    """Expected Huber loss of an error e ~ N(0, s²): ½ e² within delta, delta (|e| - delta / 2) beyond."""
    k = delta / s
    density = torch.exp(-k.square() / 2) / math.sqrt(2 * math.pi)
    beyond = torch.special.erfc(k / math.sqrt(2))  # P(|e| > delta)
    within = s.square() / 2 * (1 - beyond - 2 * k * density)
    return within + 2 * delta * s * density - delta**2 / 2 * beyond


def over_training(value_T: Tensor, objective: Objective, parts: int) -> tuple[float, list[float]]:
    """A number of each time as the log of training means it: over the distribution of t, and over each of its `parts` equal parts."""
    u = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    part_PQ = value_T[objective.t(u)].view(parts, -1)
    return float(part_PQ.mean()), part_PQ.mean(dim=1).tolist()
