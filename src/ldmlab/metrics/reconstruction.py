"""How much a first stage loses: PSNR, SSIM and a perceptual distance per image, mean and interval over images.

Images and reconstructions are rounded to the bits of the data first (8, or 16), as they would be when saved. Features for rFID go through
`features.extract` and `evaluate.evaluate` like those of samples.

Shape letters: B batch, N images, C channels, H W space.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.data.batches import to_uint8
from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import Score, mean_score

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels: the side and the deviation of the Gaussian window (Wang et al. 2004)


def peak(bits: int) -> float:
    """The largest value: 255 of 8 bits."""
    return float(2**bits - 1)


def rounded(image_BCHW: Tensor, bits: int = 8) -> Tensor:
    """Float images in [-1, 1] as they would be saved: uint8 BCHW (int32 of 16 bits), rounded to nearest, values outside clamped."""
    if bits == 8:
        return to_uint8(image_BCHW).permute(0, 3, 1, 2).contiguous()
    return image_BCHW.float().clamp(-1, 1).add(1).mul(peak(bits) / 2).round().int().contiguous()


def psnr(image_BCHW: Tensor, recon_BCHW: Tensor, *, bits: int = 8) -> Tensor:
    """Peak signal-to-noise ratio in dB per image, float64 [B], on the CPU, of two batches of whole numbers; inf where they are
    identical."""
    difference_BN = (image_BCHW.int() - recon_BCHW.int()).flatten(1)
    error_BN = (difference_BN if bits == 8 else difference_BN.long()).square()  # whole numbers: sums are exact
    return 10 * torch.log10(peak(bits) ** 2 / (error_BN.sum(dim=1).cpu().double() / error_BN.shape[1]))


def highest_psnr(C: int, H: int, W: int, *, bits: int = 8) -> float:
    """PSNR of two images that differ by one level in one value: the highest finite one."""
    return 10 * math.log10(peak(bits) ** 2 * C * H * W)


def ssim(image_BCHW: Tensor, recon_BCHW: Tensor, *, bits: int = 8) -> Tensor:
    """Structural similarity per image, float32 [B], of two batches of whole numbers: the mean over all pixels, images reflected at
    their borders. Raises ConfigError below 16 pixels a side.
    """
    if min(image_BCHW.shape[2:]) < 16:
        raise ConfigError(
            f"data.resolution={min(image_BCHW.shape[2:])}: SSIM needs images of at least 16 pixels a side."
        )
    from torchmetrics.functional.image import structural_similarity_index_measure

    value_B = structural_similarity_index_measure(
        recon_BCHW.float(),
        image_BCHW.float(),
        sigma=SSIM_SIGMA,
        kernel_size=SSIM_WINDOW,
        data_range=peak(bits),
        reduction="none",
    )
    assert isinstance(value_B, Tensor)
    return value_B.reshape(-1)


class ReconstructionError:
    """Collects one number per image over any batches; `compute` gives {"psnr", "ssim", "perceptual"}.

    `perceptual`: a module (image, reconstruction), both float [B, 3, H, W] in [-1, 1] → [B], or None. bits: of the images.
    """

    def __init__(self, perceptual: nn.Module | None = None, bits: int = 8):
        self.perceptual, self.bits = perceptual, bits
        self.rows: dict[str, list[np.ndarray]] = {}
        self.identical = 0

    @torch.no_grad()
    def update(self, image_BCHW: Tensor, recon_BCHW: Tensor) -> None:
        """One batch and its reconstruction, both float [B, C, H, W] in [-1, 1] (the second is clamped)."""
        if image_BCHW.shape != recon_BCHW.shape:
            raise ValueError(f"images {tuple(image_BCHW.shape)}, reconstructions {tuple(recon_BCHW.shape)}")
        pair = rounded(image_BCHW, self.bits), rounded(recon_BCHW, self.bits)
        psnr_B = psnr(*pair, bits=self.bits)
        self.identical += int(psnr_B.isinf().sum())
        self._add("psnr", psnr_B.clamp(max=highest_psnr(*image_BCHW.shape[1:], bits=self.bits)))
        self._add("ssim", ssim(*pair, bits=self.bits))
        if self.perceptual is not None:
            half = peak(self.bits) / 2
            self._add("perceptual", self.perceptual(*(one.float() / half - 1 for one in pair)).reshape(-1))

    def _add(self, name: str, value_B: Tensor) -> None:
        self.rows.setdefault(name, []).append(value_B.cpu().double().numpy())

    def values(self) -> dict[str, np.ndarray]:
        """One number per image, float64 [N], by name, in the order of the updates."""
        return {name: np.concatenate(rows) for name, rows in self.rows.items()}

    def warnings(self) -> list[str]:
        if not self.identical:
            return []
        n = sum(map(len, self.rows["psnr"]))
        return [
            f"PSNR: {self.identical} of {n} reconstructions equal their image after rounding to {self.bits} bit; their infinite "
            "PSNR is counted as that of a single value one level off."
        ]

    def compute(self, bootstrap: int, seed: int) -> dict[str, Score]:
        """Means with 95 % bootstrap intervals over images. Raises ValueError when there was no image."""
        if not self.rows:
            raise ValueError("no reconstruction was given")
        say = {
            "psnr": f"dB per image after rounding to {self.bits} bit, mean over images",
            "ssim": f"per image after rounding to {self.bits} bit, Gaussian window of {SSIM_WINDOW} pixels, mean over images",
            "perceptual": f"{type(self.perceptual).__name__} per image after rounding to {self.bits} bit, mean over images",
        }
        return {name: mean_score(value_N, bootstrap, seed, say[name]) for name, value_N in self.values().items()}
