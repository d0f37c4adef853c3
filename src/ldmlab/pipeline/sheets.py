"""Pictures of many images, and which images are looked at."""

from pathlib import Path

import numpy as np

from ldmlab.pipeline.sampling import contact_sheet
from ldmlab.store.files import atomic


def spread(length: int, n: int) -> list[int]:
    """n indices spread evenly over a data set, so that sorted classes are all seen."""
    return np.linspace(0, length - 1, min(n, length)).round().astype(int).tolist()


def save_sheet(path: Path, images_NHWC: np.ndarray, columns: int) -> None:
    from PIL import Image

    scale = max(1, 64 // images_NHWC.shape[1])
    with atomic(path) as beside:
        Image.fromarray(contact_sheet(images_NHWC, columns, scale)).save(beside, format="png")


def error_sheet(path: Path, original: np.ndarray, reconstructed: np.ndarray) -> None:
    """Rows: original, reconstruction, absolute error (times 4, clipped)."""
    error = np.clip(4 * np.abs(original.astype(int) - reconstructed.astype(int)), 0, 255).astype(np.uint8)
    save_sheet(path, np.concatenate([original, reconstructed, error]), len(original))
