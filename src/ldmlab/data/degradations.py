"""How an image becomes a small one: the degradations of super-resolution.

bicubic     with anti-aliasing, as the paper's main model (App. E.3.4).
bsr_light   the lighter BSR degradation of the official code (ldm/modules/image_degradation/bsrgan_light.py, after Zhang et al.
            2103.14006; docs/paper.md#degradations): blurs, two reductions, noise and JPEG, in a random order.

Everything random is drawn from the position of the image in the run, so that each visit of an image has its own and a restart
the same.

Shape letters: B batch, C channels, H W pixels.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldmlab.randomness import seed_of

Degradation = Callable[[Tensor, Tensor, int], Tensor]
"""(image float [B, 3, H, W] in [-1, 1], position int64 [B], factor) → float32 [B, 3, H/factor, W/factor] in [-1, 1], 8-bit values."""

RESIZES = ("bilinear", "bicubic", "area")  # what the official code draws from, none of them anti-aliased


def bicubic(image_BCHW: Tensor, position_B: Tensor, factor: int) -> Tensor:
    """The same for every position."""
    size = (image_BCHW.shape[2] // factor, image_BCHW.shape[3] // factor)
    return eight_bits(F.interpolate(image_BCHW.float(), size, mode="bicubic", antialias=True))


def bsr_light(image_BCHW: Tensor, position_B: Tensor, factor: int) -> Tensor:
    """One image at a time, on the CPU."""
    images = image_BCHW.detach().float().cpu().permute(0, 2, 3, 1).add(1).div(2).numpy()
    small = [_bsr_light(image, factor, rng_at(int(p))) for image, p in zip(images, position_B.tolist(), strict=True)]
    small_BCHW = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)
    return eight_bits(small_BCHW.mul(2).sub(1)).to(image_BCHW.device)


DEGRADATIONS: dict[str, Degradation] = {"bicubic": bicubic, "bsr_light": bsr_light}


def eight_bits(image_BCHW: Tensor) -> Tensor:
    """Values in [-1, 1], rounded to the nearest of 256."""
    return image_BCHW.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def rng_at(position: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_of("degradation", position)))


# ---- BSR light, images [H, W, 3] in [0, 1] ------------------------------------------------------------------------------


def _bsr_light(image: np.ndarray, factor: int, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    left = factor  # what is still to be reduced
    if factor == 4 and rng.random() < 0.25:
        image, left = _resized(image, image.shape[0] // 2, image.shape[1] // 2, rng), 2
    steps = rng.permutation(["blur", "reduce", "final size", "noise", "jpeg"]).tolist()
    first, last = steps.index("reduce"), steps.index("final size")
    if first > last:
        steps[first], steps[last] = steps[last], steps[first]
    for step in steps:
        if step == "blur":
            image = _blurred(image, left, rng)
        elif step == "reduce":
            image = _reduced(image, left, rng)
        elif step == "final size":
            image = _resized(image, height, width, rng)
        elif step == "noise":
            image = _noisy(image, rng)
        elif rng.random() < 0.9:
            image = _jpeg(image, rng)
    return _jpeg(image, rng)


def _blurred(image: np.ndarray, factor: int, rng: np.random.Generator) -> np.ndarray:
    """By an anisotropic Gaussian of variances up to (4 + factor) / 4, or an isotropic one of deviation up to (2 + factor / 5) / 4."""
    if rng.random() < 0.5:
        size, turn = int(rng.integers(5, 15)), rng.random() * np.pi
        along = (4 + factor) / 4 * np.maximum(rng.random(2), 1e-3)
        axes = np.array([[np.cos(turn), np.sin(turn)], [np.sin(turn), -np.cos(turn)]])
        inverse = axes @ np.diag(1 / along) @ axes.T
    else:
        size, deviation = int(rng.integers(5, 8)), (2 + 0.2 * factor) / 4 * max(rng.random(), 1e-2)
        inverse = np.eye(2) / deviation**2
    return _convolved(image, _gaussian(size, inverse, 0.0))


def _reduced(image: np.ndarray, factor: int, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.8:
        by = rng.uniform(1, 2 * factor)
        return _resized(image, max(1, int(image.shape[0] / by)), max(1, int(image.shape[1] / by)), rng)
    kernel = _gaussian(25, np.eye(2) / rng.uniform(0.1, 0.6 * factor) ** 2, (factor - 1) / 2)
    return np.clip(_convolved(image, kernel)[::factor, ::factor], 0, 1)


def _resized(image: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """By one of three interpolations, drawn. Area is an average over the pixels that fall into a new one."""
    mode = RESIZES[int(rng.integers(len(RESIZES)))]
    image_1CHW = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    small_1CHW = F.interpolate(image_1CHW, (height, width), mode=mode)
    return np.clip(small_1CHW[0].permute(1, 2, 0).numpy(), 0, 1)


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian, of level 1 or 2 of 255: per colour, grey, or correlated between colours."""
    level, kind = rng.integers(1, 3) / 255, rng.random()
    if kind > 0.6:
        noise = level * rng.standard_normal(image.shape)
    elif kind < 0.4:
        noise = level * rng.standard_normal((*image.shape[:2], 1))
    else:
        turned = np.linalg.qr(rng.random((3, 3)))[0]
        covariance = np.abs((2 / 255) ** 2 * turned.T @ np.diag(rng.random(3)) @ turned)
        noise = rng.multivariate_normal(np.zeros(3), covariance, image.shape[:2], check_valid="ignore")
    noisy: np.ndarray = np.clip(image + noise, 0, 1).astype(np.float32)
    return noisy


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Saved and read with a quality of 80 to 95."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(80, 96)))
    return np.asarray(Image.open(file), dtype=np.float32) / 255


def _gaussian(size: int, inverse_22: np.ndarray, shift: float) -> np.ndarray:
    """exp(-½ xᵀ Σ⁻¹ x) on size x size pixels around their middle, moved by `shift` pixels, sum 1."""
    at = np.arange(size) - (size - 1) / 2 + shift
    x_HW2 = np.stack(np.meshgrid(at, at), axis=-1)
    kernel = np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", x_HW2, inverse_22, x_HW2))
    normalised: np.ndarray = kernel / kernel.sum()
    return normalised


def _convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    found: np.ndarray = ndimage.convolve(image, kernel[:, :, None].astype(np.float32), mode="mirror")
    return np.clip(found, 0, 1)
