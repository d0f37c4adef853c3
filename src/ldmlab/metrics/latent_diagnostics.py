"""What makes a latent easy or hard for a denoiser, in numbers without a dimension, so that they compare across f.

velocity       share of the velocity's variance that no linear denoiser explains (docs/paper.md#latent-diagnostics)
high_frequency share of the latent's variance above half its highest frequency
smoothness     correlation of neighbouring positions
neighbours     share of the k nearest latents that have an image's own label; beside it, what chance gives
noise_psnr     PSNR in dB of decoding a latent with noise of a given share of the latent's own standard deviation

Each is a mean, or a ratio of means, over images, with a bootstrap interval over them. Latents come standardised by one number:
`standardised` divides by the standard deviation of all their elements, so that the scale of a first stage does not matter.

Shape letters: B batch, N images, C channels, H W space, D = C·H·W, T levels, R resamples.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmlab.diffusion.linear_gaussian import Directions, z0_error_of
from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, mean_score, resamples

LEVELS = 64  # of the straight path from data to noise, midpoints of equal parts
NEIGHBOURS = 10
WORDS = {
    "velocity": "share of the variance of eps - z0 that the best linear filter cannot tell from (1 - t) z0 + t eps, mean over t",
    "high_frequency": "share of the latent's variance at more than half its highest frequency, along either axis",
    "smoothness": "correlation of neighbouring positions, horizontal and vertical, mean over channels",
    "neighbours": "share of the nearest latents that have the image's own label",
    "noise_psnr": "PSNR of the decoded latent with added noise, 8 bit, mean over images",
}


class Ratio(NamedTuple):
    """One numerator and one denominator an image, float64 [N]: the statistic is the ratio of their means."""

    above_N: np.ndarray
    below_N: np.ndarray


def standardised(z_NCHW: Tensor, std: float) -> Tensor:
    """float64, divided by one number: the standard deviation of all elements about each element's own mean."""
    return z_NCHW.double() / std


def overall_std(z_NCHW: Tensor) -> float:
    """Root of the mean over elements of their variance over images."""
    return float(z_NCHW.double().var(dim=0, correction=0).mean().sqrt())


def ratio_score(found: Ratio, bootstrap: int, seed: int, method: str) -> Score:
    """A ratio of means with its interval over images."""
    check_bootstrap(bootstrap)
    counts_RN = resamples(len(found.above_N), bootstrap, seed)
    value = float(found.above_N.mean() / found.below_N.mean())
    replicates_R = (counts_RN @ found.above_N) / (counts_RN @ found.below_N)
    low, high = centred(value, replicates_R)
    text = f"{method}; {interval_text(bootstrap)}"
    return Score(value, low, high, len(found.above_N), text, seed, tuple(map(float, replicates_R)))


def velocity(directions: Directions, z_NCHW: Tensor) -> Ratio:
    """Unexplained variance of v = eps - z_0 on the straight path z_t = (1 - t) z_0 + t eps, over its whole variance.

    Given z_t the error of v is that of z_0 over t. The denoiser is the best linear one of the latents that `directions` were
    fitted to; the error is that of `z_NCHW` (others), expected over the noise. A bound from above of what any denoiser leaves,
    tight for Gaussian latents. White noise: π/4. A latent that varies in few of its directions: near 0.
    """
    t_T = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    power_ND = directions.power(z_NCHW)
    errors = [z0_error_of(power_ND, directions.variance_D, 1 - t, t) / t**2 for t in t_T]
    return Ratio(torch.stack(errors).mean(dim=0).numpy(), (1 + power_ND.mean(dim=1)).numpy())


def high_frequency(z_NCHW: Tensor) -> Ratio | None:
    """Variance about the mean latent at frequencies above a quarter cycle a position, over all; None for maps of one position.

    White noise: the share of such frequencies, about 3/4.
    """
    H, W = z_NCHW.shape[2:]
    if min(H, W) < 2:
        return None
    power_NHW = torch.fft.fft2(z_NCHW - z_NCHW.mean(0), norm="ortho").abs().square().mean(dim=1)
    high_HW = torch.maximum(torch.fft.fftfreq(H).abs()[:, None], torch.fft.fftfreq(W).abs()) > 0.25
    total_N = power_NHW.mean(dim=(1, 2)).numpy()
    return Ratio((power_NHW * high_HW).mean(dim=(1, 2)).numpy(), total_N)


def smoothness(z_NCHW: Tensor) -> Ratio | None:
    """1 less half the mean squared difference of neighbours over the variance about each channel's mean; None for maps of one
    position. White noise: 0; a map that does not vary over space: 1.
    """
    if min(z_NCHW.shape[2:]) < 2:
        return None
    across = [z_NCHW.diff(dim=axis).square().mean(dim=(1, 2, 3)) for axis in (2, 3)]
    variance_N = (z_NCHW - z_NCHW.mean(dim=(0, 2, 3), keepdim=True)).square().mean(dim=(1, 2, 3))
    return Ratio((variance_N - (across[0] + across[1]) / 4).numpy(), variance_N.numpy())


def neighbours(z_NCHW: Tensor, label_N: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """For each image the share of its k nearest other latents (Euclidean) with its label, float64 [N]."""
    z_ND, label = z_NCHW.flatten(1), torch.as_tensor(label_N)
    shares = []
    for begin in range(0, len(z_ND), 512):
        distance_BN = torch.cdist(z_ND[begin : begin + 512], z_ND)
        rows = torch.arange(len(distance_BN))
        distance_BN[rows, begin + rows] = torch.inf
        nearest_Bk = distance_BN.topk(min(k, len(z_ND) - 1), largest=False).indices
        shares.append((label[nearest_Bk] == label[begin : begin + 512, None]).double().mean(dim=1))
    return torch.cat(shares).numpy()


def chance(label_N: np.ndarray) -> float:
    """The expected share for neighbours drawn at random from the other images."""
    count_K, N = np.bincount(label_N).astype(np.float64), len(label_N)
    return float((count_K * (count_K - 1)).sum() / (N * (N - 1)))


class Latents(NamedTuple):
    """What the diagnostics of one kind of latent are computed from: `directions` of training latents, val latents in the same
    scale, PSNR of each val image decoded with noise (None: nothing to decode with).
    """

    directions: Directions
    z_NCHW: Tensor
    noise_psnr_N: np.ndarray | None


def diagnose(found: Latents, label_N: np.ndarray | None, bootstrap: int, seed: int) -> dict[str, Score]:
    """Every diagnostic that this latent has, by name. label_N: of the val images; None without classes."""
    ratios = {
        "velocity": velocity(found.directions, found.z_NCHW), "high_frequency": high_frequency(found.z_NCHW),
        "smoothness": smoothness(found.z_NCHW),
    }  # fmt: skip
    scores = {
        name: ratio_score(ratio, bootstrap, seed, WORDS[name]) for name, ratio in ratios.items() if ratio is not None
    }
    if label_N is not None:
        scores["neighbours"] = mean_score(neighbours(found.z_NCHW, label_N), bootstrap, seed, WORDS["neighbours"])
    if found.noise_psnr_N is not None:
        scores["noise_psnr"] = mean_score(found.noise_psnr_N, bootstrap, seed, WORDS["noise_psnr"])
    return scores
