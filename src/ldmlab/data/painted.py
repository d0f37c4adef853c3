"""The painted images of a generated split in one file, made at the first use and memory-mapped from then on.

Shape letters: B images, H W pixels, N images of the split.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ldmlab.errors import DataError
from ldmlab.store.lock import locked

log = logging.getLogger(__name__)

BLOCK_PIXELS = 1 << 20  # painted by a thread at a time


class Painted:
    """`file` holds the images 0 … N-1 of a generator, `shape` = (N, H, W, 3); `paint(index_B)` makes them, uint8 [B, H, W, 3].

    Several processes may ask at once: one paints, the others wait for it.
    """

    def __init__(self, file: Path, shape: tuple[int, int, int, int], paint: Callable[[np.ndarray], np.ndarray]):
        self.file, self.shape, self.paint = file, shape, paint
        self._mapped: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        """The pictures, uint8 [N, H, W, 3], read-only and memory-mapped."""
        if self._mapped is None:
            if not self.file.exists():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with locked(Path(f"{self.file}.building")):
                    if not self.file.exists():  # another process may have painted while this one waited
                        self._paint()
            self._mapped = self._map()
        return self._mapped

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": None}  # a worker maps the file itself

    def _paint(self) -> None:
        file, count = self.file, self.shape[0]
        log.info("painting %d images of shapes into %s", count, file)
        part = file.with_suffix(".part")
        try:
            # written, not mapped: a full disk is then an error to report, and not a bus error
            with open(part, "wb") as out:
                np.lib.format.write_array_header_1_0(
                    out,
                    {
                        "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
                        "fortran_order": False,
                        "shape": self.shape,
                    },
                )
                block = max(1, BLOCK_PIXELS // self.shape[1] ** 2)
                starts = range(0, count, block)
                threads = min(8, os.cpu_count() or 1)
                with ThreadPoolExecutor(threads) as pool:  # numpy lets go of the interpreter lock in its loops
                    for first in range(0, len(starts), 4 * threads):
                        wave = [np.arange(s, min(s + block, count)) for s in starts[first : first + 4 * threads]]
                        for image_BHW3 in pool.map(self.paint, wave):
                            out.write(image_BHW3.tobytes())
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            size = np.prod(self.shape) / 1e9
            raise DataError(
                f"could not write the painted images to {file}: {error}. They need {size:.2f} GB; free some space, "
                "or set data.cached=false to paint on every access."
            ) from error
        os.replace(part, file)

    def _map(self) -> np.ndarray:
        file = self.file
        way_out = f"Delete {file} and repeat the command: it will be painted again."
        try:
            painted = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is not a whole .npy file: {error}. {way_out}") from error
        ends = np.array([0, self.shape[0] - 1])
        if painted.shape != self.shape or painted.dtype != np.uint8:
            raise DataError(f"{file} holds {painted.dtype}{list(painted.shape)}, not this split. {way_out}")
        if not np.array_equal(painted[ends], self.paint(ends)):
            raise DataError(f"{file} does not hold the images that this version of shapes paints. {way_out}")
        return painted
