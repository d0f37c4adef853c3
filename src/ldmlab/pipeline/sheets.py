"""Contact sheets, and which images of a data set they show."""

from pathlib import Path

import numpy as np
from einops import rearrange

from ldmlab.store.files import atomic


def spread(length: int, n: int) -> list[int]:
    """n indices spread evenly over a data set, so that sorted classes are all seen."""
    return np.linspace(0, length - 1, min(n, length)).round().astype(int).tolist()


def tiled(images_NHWC: np.ndarray, columns: int, scale: int = 1, gap: int = 2, ground: int = 255) -> np.ndarray:
    """The images in rows of `columns`, [H', W', C]; between them, and where images are missing, `ground`.

    scale: how often each pixel is repeated to each side. gap: pixels between images.
    """
    missing = -len(images_NHWC) % columns
    enlarged_NHWC = np.asarray(images_NHWC).repeat(scale, 1).repeat(scale, 2)
    padded_NHWC = np.pad(enlarged_NHWC, ((0, missing), (0, gap), (0, gap), (0, 0)), constant_values=ground)
    sheet_HWC = rearrange(padded_NHWC, "(r c) h w k -> (r h) (c w) k", c=columns)
    return sheet_HWC[: len(sheet_HWC) - gap, : sheet_HWC.shape[1] - gap]


def as_rgb(image_XHWC: np.ndarray) -> np.ndarray:
    """Images to look at, uint8 [..., H, W, 3]: grey three times, opacity laid on white; RGB as it is."""
    if image_XHWC.shape[-1] == 1:
        return np.repeat(image_XHWC, 3, axis=-1)
    if image_XHWC.shape[-1] != 4:
        return image_XHWC
    opacity_XHW1 = image_XHWC[..., 3:].astype(np.float32) / 255
    laid: np.ndarray = (image_XHWC[..., :3] * opacity_XHW1 + 255 * (1 - opacity_XHW1)).round().astype(np.uint8)
    return laid


def save_sheet(path: Path, images_NHWC: np.ndarray, columns: int) -> None:
    """The images as one PNG on white, small ones enlarged to 64 pixels a side."""
    from PIL import Image

    with atomic(path) as beside:
        Image.fromarray(tiled(as_rgb(images_NHWC), columns, max(1, 64 // images_NHWC.shape[1]))).save(
            beside, format="png"
        )


def error_sheet(path: Path, original: np.ndarray, reconstructed: np.ndarray) -> None:
    """Rows: original, reconstruction, absolute error (times 4, clipped)."""
    error = np.clip(4 * np.abs(original.astype(int) - reconstructed.astype(int)), 0, 255).astype(np.uint8)
    save_sheet(path, np.concatenate([original, reconstructed, error]), len(original))
