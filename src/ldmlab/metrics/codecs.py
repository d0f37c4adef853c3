"""What codecs without training make of the same images at falling quality: JPEG, WebP, and rounded principal components.

Bits are those that the picture itself needs. JPEG: the entropy-coded scan, without headers and tables (they would be half of a
picture of 64 pixels; Huffman tables are the standard's). WebP: the VP8 frame, without the RIFF container. Both sample colours at
half resolution. Rounded components: each coefficient of 8×8 patches to a multiple of one step, and the bits an ideal entropy
coder needs when it knows how often each component takes each value in these images.

Letters: N images, H W space, M patches, P = 3·8·8 components.
"""

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmlab.autoencoders.linear_path import images_of, patch_moments, patches, principal_components
from ldmlab.data.batches import to_float
from ldmlab.metrics.reconstruction import highest_psnr, psnr, rounded

if TYPE_CHECKING:
    from PIL.Image import Image

CODEC_PIXELS = 2**21  # that are coded, at most: 512 images of 64 pixels, 32 of 256
JPEG_QUALITIES = (1, 5, 10, 20, 30, 50, 70, 85, 95)
WEBP_QUALITIES = (0, 5, 15, 30, 50, 70, 85, 95)
PATCH = 8
STEPS = (2.0, 1.0, 0.5, 0.25, 0.12, 0.06, 0.03)  # of a coefficient; images lie in [-1, 1]
RIFF_BYTES = 20  # "RIFF", size, "WEBP", "VP8 ", size


class CodecPoint(NamedTuple):
    """One setting over all images: quality or step, mean bits a pixel, mean PSNR in dB of 8-bit images."""

    setting: float
    bits_per_pixel: float
    psnr: float


def scan_bytes(jpeg: bytes) -> int:
    """Bytes of entropy-coded data between the header of the (one) scan and the end of the image."""
    at = 2
    while True:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        at += 2 + length
        if marker == 0xDA:  # start of scan
            return len(jpeg) - 2 - at


def _jpeg(image: "Image", quality: int) -> tuple[bytes, int]:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    return file.getvalue(), scan_bytes(file.getvalue())


def _webp(image: "Image", quality: int) -> tuple[bytes, int]:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=6)
    return file.getvalue(), len(file.getvalue()) - RIFF_BYTES


def coded(image_NHWC: np.ndarray, code: Callable[["Image", int], tuple[bytes, int]], quality: int) -> CodecPoint:
    """uint8 images through one codec at one quality."""
    from PIL import Image  # here, for it takes time to import

    N, H, W, C = image_NHWC.shape
    bits, found = 0, []
    for image_HWC in image_NHWC:
        data, size = code(Image.fromarray(image_HWC[..., 0] if C == 1 else image_HWC), quality)
        back_HWC = np.array(Image.open(io.BytesIO(data)).convert("L" if C == 1 else "RGB")).reshape(H, W, C)
        pair = [torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None] for x in (image_HWC, back_HWC)]
        found.append(float(psnr(*pair).clamp(max=highest_psnr(C, H, W))))
        bits += 8 * size
    return CodecPoint(quality, bits / (N * H * W), float(np.mean(found)))


@torch.no_grad()
def rounded_components(image_NHWC: np.ndarray, training: Iterable[Tensor]) -> list[CodecPoint]:
    """Points of rounded principal components of 8×8 patches, fitted to the training batches [B, 3, ·, ·] in [-1, 1]."""
    moments = patch_moments(PATCH, training)
    mean_P = moments.mean().cpu()
    basis_PP = principal_components(moments.covariance())[1].cpu()
    image_NCHW = to_float(torch.from_numpy(image_NHWC))
    N, C, H, W = image_NCHW.shape
    coefficient_MP = (patches(image_NCHW, PATCH).double() - mean_P) @ basis_PP.T
    original = rounded(image_NCHW)
    points = []
    for step in STEPS:
        level_MP = (coefficient_MP / step).round()
        bits = sum(_entropy_bits(level_M) for level_M in level_MP.T.numpy())
        patch_MP = level_MP * step @ basis_PP + mean_P
        back = rounded(images_of(patch_MP, image_NCHW.shape, PATCH).float())
        value = float(psnr(original, back).clamp(max=highest_psnr(C, H, W)).mean())
        points.append(CodecPoint(step, bits / (N * H * W), value))
    return points


def _entropy_bits(level_M: np.ndarray) -> float:
    """Bits of all values together, at the entropy of their own frequencies."""
    counts = np.unique(level_M, return_counts=True)[1]
    return float(-(counts * np.log2(counts / len(level_M))).sum())


def codec_curves(image_NHWC: np.ndarray, training: Iterable[Tensor]) -> dict[str, list[CodecPoint]]:
    """The points of each codec for uint8 images, grey or RGB, rate rising; without rounded components where 8 does not divide the
    image's sides. Of images with opacity, which the codecs treat apart, none."""
    if image_NHWC.shape[3] == 4:
        return {}
    found = {
        "JPEG": [coded(image_NHWC, _jpeg, quality) for quality in JPEG_QUALITIES],
        "WebP": [coded(image_NHWC, _webp, quality) for quality in WEBP_QUALITIES],
    }
    if image_NHWC.shape[1] % PATCH == 0 and image_NHWC.shape[2] % PATCH == 0:
        found["PCA, rounded"] = rounded_components(image_NHWC, training)
    return found
