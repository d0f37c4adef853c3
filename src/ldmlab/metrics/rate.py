"""What a latent costs in bits: the KL rate of a Gaussian posterior, or the codes of a codebook and their entropy.

A *pixel* is one position of the image with its three colours; an image of 8 bit costs 24 bits a pixel.

Shape letters: B batch, N images, C channels, H W space, K codes, R resamples.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from ldmlab.metrics.intervals import Score, centred, interval_text, mean_score, resamples


def kl_bits(mean_BCHW: Tensor, variance_BCHW: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, I)) of each image in bits, float64 [B] on the CPU, summed over the latent's elements."""
    m, v = mean_BCHW.cpu().double(), variance_BCHW.cpu().double()
    return 0.5 * (m.square() + v - 1 - v.log()).flatten(1).sum(1) / math.log(2)


def entropy_bits(counts_RK: np.ndarray) -> np.ndarray:
    """Entropy in bits of the code frequencies in each row, float64 [R] (plug-in: low while images are few)."""
    p_RK = counts_RK / counts_RK.sum(axis=1, keepdims=True)
    logs_RK = np.log2(p_RK, out=np.zeros_like(p_RK), where=p_RK > 0)
    return -(p_RK * logs_RK).sum(axis=1)


class Rate:
    """Gathers images batch by batch; `compute` gives the scores of the kind of latent that it was given.

    positions: latent positions an image (h · w). elements: latent elements an image (c · h · w). pixels: H · W.
    """

    def __init__(self, positions: int, elements: int, pixels: int):
        self.positions, self.elements, self.pixels = positions, elements, pixels
        self.bits: list[np.ndarray] = []
        self.codes: list[np.ndarray] = []  # of each image, every position's code in ascending order
        self.K: int | None = None

    def add_posterior(self, mean_BCHW: Tensor, variance_BCHW: Tensor) -> None:
        """One batch of Gaussian posteriors of the raw latent."""
        self.bits.append(kl_bits(mean_BCHW, variance_BCHW).numpy())

    def add_codes(self, counts_K: Tensor) -> None:
        """How often each code occurs in one image, int64 [K]."""
        self.K = len(counts_K)
        self.codes.append(np.repeat(np.arange(self.K, dtype=np.int32), counts_K.cpu().numpy()))

    def compute(self, bootstrap: int, seed: int) -> dict[str, Score | float]:
        """With 95 % intervals over images. Empty for a latent that is neither.

        Posterior: `kl_bits` (per latent element) and `bits_per_pixel`, the KL to N(0, I) per pixel: what a sample of
        the latent costs at most, with bits-back coding and that prior. It bounds samples; PSNR is of the posterior mean.
        Codebook: `codebook_usage` (share of codes that occur at all), `codebook_perplexity` (2^entropy),
        `bits_per_pixel` = log2 K · h w / (H W), exact, and `entropy_bits_per_pixel`, the same with the entropy of the
        codes as they occur (one distribution for all positions) in place of log2 K.
        """
        found: dict[str, Score | float] = {}
        if self.bits:
            bits_N = np.concatenate(self.bits)
            say = "KL of the posterior to N(0, I) in bits, an upper bound of the rate of a sample,"
            found["kl_bits"] = mean_score(bits_N / self.elements, bootstrap, seed, f"{say} per latent element")
            found["bits_per_pixel"] = mean_score(bits_N / self.pixels, bootstrap, seed, f"{say} per pixel")
        if self.K is not None:
            found |= self._codebook(bootstrap, seed)
            found["bits_per_pixel"] = math.log2(self.K) * self.positions / self.pixels
        return found

    def _codebook(self, bootstrap: int, seed: int) -> dict[str, Score | float]:
        from scipy.sparse import csr_matrix

        N, K = len(self.codes), self.K
        code_M, image_M = np.concatenate(self.codes), np.repeat(np.arange(N), [len(codes) for codes in self.codes])
        counts_NK = csr_matrix((np.ones(len(code_M)), (image_M, code_M)), shape=(N, K))  # repeated entries add up
        total_1K = np.asarray(counts_NK.sum(axis=0), dtype=np.float64).reshape(1, -1)
        drawn_RN = resamples(N, bootstrap, seed)
        entropy_R, usage_R = np.empty(bootstrap), np.empty(bootstrap)
        for r in range(bootstrap):  # a row at a time: R x K would not fit for large codebooks
            row_1K = np.asarray(counts_NK.T @ drawn_RN[r], dtype=np.float64).reshape(1, -1)
            entropy_R[r], usage_R[r] = entropy_bits(row_1K)[0], (row_1K > 0).mean()
        entropy = float(entropy_bits(total_1K)[0])
        log_k, per_pixel = math.log2(total_1K.shape[1]), self.positions / self.pixels

        def score(value: float, replicates_R: np.ndarray, lowest: float, highest: float, say: str) -> Score:
            low, high = centred(value, replicates_R, lowest, highest)
            text = f"{say}; {interval_text(bootstrap)}"
            return Score(value, low, high, N, text, seed, tuple(map(float, replicates_R)))

        return {
            "codebook_usage": score(float((total_1K > 0).mean()), usage_R, 0, 1, f"share of codes seen in {N} images"),
            "codebook_perplexity": score(2**entropy, 2**entropy_R, 1, 2**log_k, "2 to the entropy of the codes"),
            "entropy_bits_per_pixel": score(
                entropy * per_pixel, entropy_R * per_pixel, 0, log_k * per_pixel, "entropy of the codes, per pixel"
            ),
        }


def plain(scores: dict[str, Any]) -> dict[str, Any]:
    """For json: scores as dictionaries, bare numbers as they are."""
    return {name: value.to_dict() if isinstance(value, Score) else value for name, value in scores.items()}
