"""Answers to a hole without a trained network: what inpainting must beat.

Shape letters: H W pixels, C colours, M known patches, P numbers of a patch.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

PATCH = 5  # pixels a side
MOST_PATCHES = 4096  # compared with at each step; of more, an even choice


def mean_fill(image_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """uint8: the hole in the mean colour of the known pixels; grey where nothing is known."""
    known_KC = image_HWC[~hole_HW]
    colour_C = known_KC.mean(axis=0) if len(known_KC) else np.full(image_HWC.shape[2], 127.5)
    filled = image_HWC.copy()
    filled[hole_HW] = colour_C.round().astype(np.uint8)
    return filled


def patch_fill(image_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """uint8: the hole from its border inwards, each time with the known patch of this image that is nearest to what is known there.

    Criminisi, Pérez & Toyama (IEEE TIP 2004) without the term for edges: the pixel whose patch has most known pixels comes
    first, its patch takes the missing pixels from the known patch of least squared distance over the others. The mean colour
    where no patch of the image is known whole.
    """
    half = PATCH // 2
    padded_HWC = np.pad(image_HWC.astype(np.float32), ((half, half), (half, half), (0, 0)))
    inside_HW = np.pad(np.ones_like(hole_HW), half)
    missing_HW = np.pad(hole_HW, half)
    patches_MP = known_patches(padded_HWC, inside_HW & ~missing_HW)
    if not len(patches_MP):
        return mean_fill(image_HWC, hole_HW)
    squares_MP = patches_MP**2
    while missing_HW.any():
        counts_HW = sliding_window_view(inside_HW & ~missing_HW, (PATCH, PATCH)).sum(axis=(2, 3))
        y, x = np.unravel_index(np.where(missing_HW[half:-half, half:-half], counts_HW, -1).argmax(), counts_HW.shape)
        window = (slice(y, y + PATCH), slice(x, x + PATCH))
        target_HWC, gap_HW = padded_HWC[window], missing_HW[window]
        weight_P = (
            np.repeat((inside_HW[window] & ~gap_HW).reshape(-1, 1), image_HWC.shape[2], axis=1)
            .ravel()
            .astype(np.float32)
        )
        distance_M = squares_MP @ weight_P - 2 * patches_MP @ (weight_P * target_HWC.ravel())
        best_HWC = patches_MP[distance_M.argmin()].reshape(target_HWC.shape)
        target_HWC[gap_HW] = best_HWC[gap_HW]  # a view: fills the image
        missing_HW[window] = False
    return padded_HWC[half:-half, half:-half].round().astype(np.uint8)


def known_patches(image_HWC: np.ndarray, known_HW: np.ndarray) -> np.ndarray:
    """float32 [M, P]: the patches of an image of which every pixel is known."""
    whole_HW = sliding_window_view(known_HW, (PATCH, PATCH)).all(axis=(2, 3))
    ys, xs = np.nonzero(whole_HW)
    kept = np.linspace(0, len(ys) - 1, min(len(ys), MOST_PATCHES)).astype(int) if len(ys) else np.empty(0, int)
    patches_HWCpp = sliding_window_view(image_HWC, (PATCH, PATCH), axis=(0, 1))
    patches_MP: np.ndarray = (
        patches_HWCpp[ys[kept], xs[kept]].transpose(0, 2, 3, 1).reshape(len(kept), PATCH * PATCH * image_HWC.shape[2])
    )
    return np.ascontiguousarray(patches_MP)
