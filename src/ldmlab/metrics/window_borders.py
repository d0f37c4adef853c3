"""Whether the borders of windows are seen: how much pixels differ across them, over how much they differ elsewhere.

Shape letters: N images, H W pixels.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from ldmlab.diffusion.windows import borders
from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import mean_score
from ldmlab.metrics.metric import Computed, Inputs, Metric
from ldmlab.ranges import Range

Pixels = Annotated[int, Range(at_least=1, at_most=16_384)]
PART = 16  # images read at a time


@dataclass(frozen=True)
class WindowBorders(Metric):
    """Mean |difference| of neighbouring pixels across the borders of windows, over that across all other lines of the same grid; mean
    over images. 1: borders cannot be told from other places. Samples without windows are looked at in the same places.

    window, overlap: of the windows, in pixels, whether samples were drawn through them or not. grid: lines are counted every so many
    pixels, the first stage's f, so that what a decoder does at the edges of its positions is on both sides of the ratio.

    Raises ConfigError for samples without a border, and for windows that are off the grid.
    """

    name: ClassVar[str] = "window_borders"
    label: ClassVar[str] = "across borders / elsewhere"
    needs: ClassVar[tuple[str, ...]] = ("features", "pixels")
    better: ClassVar[Literal["lower", "higher"] | None] = "lower"
    covers: ClassVar[str] = "the mean over other samples drawn in the same way"

    window: Pixels = 64
    overlap: Annotated[int, Range(at_least=0, at_most=16_384)] = 32
    grid: Pixels = 4

    def compute(self, inputs: Inputs) -> Computed:
        if inputs.read_samples is None or inputs.samples is None:
            raise ValueError("the borders of windows need samples")
        n, ratios = len(inputs.samples), []
        for begin in range(0, n, PART):
            images_NHWC = inputs.read_samples(list(range(begin, min(begin + PART, n)))).numpy()
            ratios.append(border_ratio(images_NHWC, self.window, self.overlap, self.grid))
        method = f"windows of {self.window} pixels that overlap by {self.overlap}"
        return Computed({self.name: mean_score(np.concatenate(ratios), inputs.bootstrap, inputs.seed, method)})


def border_ratio(images_NHWC: np.ndarray, window: int, overlap: int, grid: int) -> np.ndarray:
    """Of each image, float64 [N]; ConfigError where there is no border or no other line."""
    if not 0 <= overlap < window or window % grid or overlap % grid:
        raise ConfigError(
            f"metric.window_borders: window={window} and overlap={overlap} must be multiples of grid={grid}, the first stage's f, and the "
            "overlap smaller."
        )
    across, elsewhere = [], []
    for axis in (1, 2):
        size = images_NHWC.shape[axis]
        difference = np.abs(np.diff(images_NHWC.astype(np.int16), axis=axis))  # entry p-1 is between p-1 and p
        of_line = np.moveaxis(difference, axis, 1).mean(axis=(2, 3), dtype=np.float64)
        lines = set(range(grid, size, grid))
        seams = sorted(lines & set(borders(size, window, overlap)))
        across.append(of_line[:, [p - 1 for p in seams]])
        elsewhere.append(of_line[:, [p - 1 for p in sorted(lines - set(seams))]])
    found = [np.concatenate(parts, axis=1) for parts in (across, elsewhere)]
    if 0 in (found[0].shape[1], found[1].shape[1]):
        raise ConfigError(
            f"metric.window_borders: samples of {images_NHWC.shape[1]}x{images_NHWC.shape[2]} have no border of windows of {window}, or "
            "nothing else. Give the window and overlap of the samples."
        )
    ratio: np.ndarray = found[0].mean(axis=1) / np.maximum(found[1].mean(axis=1), 1e-12)
    return ratio
