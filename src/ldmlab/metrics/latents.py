"""What a latent looks like: histograms, correlation, principal components, spectrum, and how well a decoder bears noise.

Shape letters: B batch, N images, C channels, H W space, M values, J bins, P principal components, F frequencies,
S noise levels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmlab.metrics.reconstruction import highest_psnr, psnr, rounded

NOISE_LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # sigma, in standard deviations of the latent
BINS = 60


class Histogram(NamedTuple):
    """density_CJ integrates to 1, less the values outside of the edges."""

    edges_J: np.ndarray
    density_CJ: np.ndarray


class Spectrum(NamedTuple):
    """Mean power in rings of equal spatial frequency; 1 everywhere for white noise of unit variance."""

    cycles_F: np.ndarray  # per image side: 0, 1, 2, … half the side
    power_CF: np.ndarray


class Pca(NamedTuple):
    """Principal components of a latent's channels. The columns of basis_CP are orthonormal."""

    mean_C: np.ndarray
    basis_CP: np.ndarray  # P = min(3, C), largest variance first; the largest entry of each column is positive
    share_P: np.ndarray  # of the variance


class Noised(NamedTuple):
    """PSNR in dB of what is decoded from a latent with noise, float64 [S, N]."""

    additive_SN: np.ndarray  # decode(z + σ n)
    preserving_SN: np.ndarray  # decode(√(1 − σ²) z + σ n): the latent of a diffusion at that noise level


def histograms(z_NCHW: np.ndarray, bins: int = BINS) -> Histogram:
    """One histogram a channel over common edges, symmetric about 0, that leave out the outermost thousandth."""
    values_CM = np.moveaxis(z_NCHW, 1, 0).reshape(z_NCHW.shape[1], -1).astype(np.float64)
    limit = float(np.quantile(np.abs(values_CM), 0.999)) or 1.0
    edges_J = np.linspace(-limit, limit, bins + 1)
    counts_CJ = np.stack([np.histogram(values_M, edges_J)[0] for values_M in values_CM])
    return Histogram(edges_J, counts_CJ / (values_CM.shape[1] * (edges_J[1] - edges_J[0])))


def correlation(z_NCHW: np.ndarray) -> np.ndarray:
    """Pearson correlation of the channels over images and positions, float64 [C, C]; 0 beside a constant channel."""
    x_CM = np.moveaxis(z_NCHW, 1, 0).reshape(z_NCHW.shape[1], -1).astype(np.float64)
    x_CM -= x_CM.mean(axis=1, keepdims=True)
    norm_C1 = np.sqrt(np.square(x_CM).sum(axis=1, keepdims=True))
    x_CM = np.divide(x_CM, norm_C1, out=np.zeros_like(x_CM), where=norm_C1 > 0)
    return x_CM @ x_CM.T


def spectrum(x_NCHW: np.ndarray) -> Spectrum:
    """Radially averaged power spectrum of square maps, each channel less its mean over all images, over its variance.

    Ring k holds the frequencies whose distance from 0 rounds to k cycles per side, k up to half the side.
    """
    H, W = x_NCHW.shape[2:]
    if H != W:
        raise ValueError(f"a radial spectrum needs square maps; got {H}x{W}")
    x_NCHW = x_NCHW.astype(np.float64) - x_NCHW.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    variance_C = np.square(x_NCHW).mean(axis=(0, 2, 3))
    # |FFT|² / HW is 1 in expectation for white noise of unit variance
    power_CHW = (np.abs(np.fft.fft2(x_NCHW)) ** 2).mean(axis=0) / (H * W)
    k_H = np.fft.fftfreq(H, 1 / H)
    ring_HW = np.rint(np.hypot(k_H[:, None], k_H[None, :])).astype(int)
    inside = ring_HW <= H // 2
    size_F = np.bincount(ring_HW[inside])
    power_CF = np.stack([np.bincount(ring_HW[inside], weights=p_HW[inside]) / size_F for p_HW in power_CHW])
    safe_C1 = np.where(variance_C > 0, variance_C, 1.0)[:, None]
    return Spectrum(np.arange(len(size_F)), power_CF / safe_C1)


def pca(z_NCHW: np.ndarray) -> Pca:
    """The first three principal components of the channel vectors (all of them where there are fewer channels)."""
    x_MC = np.moveaxis(z_NCHW, 1, 3).reshape(-1, z_NCHW.shape[1]).astype(np.float64)
    mean_C = x_MC.mean(axis=0)
    values_C, vectors_CC = np.linalg.eigh((x_MC - mean_C).T @ (x_MC - mean_C) / len(x_MC))
    basis_CP = vectors_CC[:, ::-1][:, :3]
    largest_P = np.abs(basis_CP).argmax(axis=0)
    basis_CP = basis_CP * np.where(basis_CP[largest_P, range(basis_CP.shape[1])] < 0, -1.0, 1.0)
    total = max(float(values_C.clip(min=0).sum()), 1e-30)
    return Pca(mean_C, basis_CP, values_C[::-1][:3].clip(min=0) / total)


def pca_rgb(z_NCHW: np.ndarray, found: Pca, spread: np.ndarray) -> np.ndarray:
    """Maps as colours, uint8 [N, H, W, 3]: component p is colour p, −spread[p] … +spread[p] is 0 … 255.

    Colours without a component (C < 3) are mid-grey, 128.
    """
    along_NHWP = (np.moveaxis(z_NCHW, 1, 3).astype(np.float64) - found.mean_C) @ found.basis_CP
    rgb_NHW3 = np.full((*along_NHWP.shape[:3], 3), 128.0)
    rgb_NHW3[..., : along_NHWP.shape[3]] = (along_NHWP / np.where(spread > 0, spread, 1.0) + 1) * 127.5
    return rgb_NHW3.round().clip(0, 255).astype(np.uint8)


def pca_spread(z_NCHW: np.ndarray, found: Pca) -> np.ndarray:
    """Per component the 98th percentile of its absolute value: the range that `pca_rgb` shows."""
    along_MP = (np.moveaxis(z_NCHW, 1, 3).reshape(-1, z_NCHW.shape[1]) - found.mean_C) @ found.basis_CP
    return np.quantile(np.abs(along_MP), 0.98, axis=0)


@torch.no_grad()
def noised(
    decode: Callable[[Tensor], Tensor],
    z_BCHW: Tensor,
    image8_BCHW: Tensor,
    noise_BCHW: Tensor,
    std: float = 1.0,
    levels: tuple[float, ...] = NOISE_LEVELS,
) -> Noised:
    """Decodes latents with more and more of one fixed noise.

    decode: latent → image in [-1, 1]. image8_BCHW: the originals, uint8. noise_BCHW: standard normal, scaled by `std`,
    the latent's own. The same noise at every level, so the curves are smooth.
    """
    highest = highest_psnr(*image8_BCHW.shape[1:])

    def quality(noised_BCHW: Tensor) -> np.ndarray:
        return psnr(image8_BCHW, rounded(decode(noised_BCHW))).clamp(max=highest).cpu().numpy()

    n_BCHW = noise_BCHW * std
    additive = [quality(z_BCHW + s * n_BCHW) for s in levels]
    preserving = [quality((1 - s * s) ** 0.5 * z_BCHW + s * n_BCHW) for s in levels]
    return Noised(np.stack(additive), np.stack(preserving))
