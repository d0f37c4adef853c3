"""The same images across cells: reconstructions, error maps, zoomed crops, latents as colours. Letters: N images, H W space.

Rows are those of `strips`.
"""

from dataclasses import dataclass
from typing import Any

from ldmlab.reports.cells import Cell
from ldmlab.reports.strips import Strip, sheet, strip

ERROR_GAIN = 4
CROPS = 4


@dataclass(frozen=True)
class Crop:
    """A square of one image, `side` pixels from (y, x)."""

    image: int
    y: int
    x: int
    side: int


def error_map(original_NHWC: Any, reconstruction_NHWC: Any) -> Any:
    """Absolute difference per colour, times ERROR_GAIN, clipped at 255; uint8."""
    import numpy as np

    difference = np.abs(original_NHWC.astype(int) - reconstruction_NHWC.astype(int))
    return np.clip(ERROR_GAIN * difference, 0, 255).astype(np.uint8)


def side_by_side(cells: list[Cell]) -> list[Strip]:
    """The originals, then each cell's reconstructions and errors; only cells that show the same originals."""
    first = cells[0].shown.original_NHWC
    strips = [strip("Original", "", first, 96)]
    for cell in same_images(cells):
        strips.append(strip(cell.label, _psnr(cell), cell.shown.reconstruction_NHWC, 96))
        strips.append(
            strip(cell.label, f"error × {ERROR_GAIN}", error_map(first, cell.shown.reconstruction_NHWC), 96, error=True)
        )
    return strips


def _psnr(cell: Cell) -> str:
    score = cell.record.scores.get("psnr")
    return "" if score is None else f"{score.value:.1f} dB"


def same_images(cells: list[Cell]) -> list[Cell]:
    import numpy as np

    first = cells[0].shown.original_NHWC
    return [cell for cell in cells if np.array_equal(cell.shown.original_NHWC, first)]


def find_crops(original_NHWC: Any, n: int = CROPS) -> list[Crop]:
    """In each of the first images the square of a quarter of the side (at least 16 pixels) with the most detail
    (squared gradient); of these the n with most of it, in the order of the images. Chosen from the originals alone.
    """
    import numpy as np

    H = original_NHWC.shape[1]
    side = max(16, H // 4)
    grey = original_NHWC.astype(float).mean(axis=3)
    detail = np.zeros_like(grey)
    detail[:, 1:] += np.diff(grey, axis=1) ** 2
    detail[:, :, 1:] += np.diff(grey, axis=2) ** 2
    table = np.pad(detail.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))  # sums of squares from four corners
    sums = table[:, side:, side:] - table[:, :-side, side:] - table[:, side:, :-side] + table[:, :-side, :-side]
    most = sorted(range(len(sums)), key=lambda i: -float(sums[i].max()))[:n]
    places = {i: divmod(int(sums[i].argmax()), sums.shape[2]) for i in sorted(most)}
    return [Crop(i, y, x, side) for i, (y, x) in places.items()]


def cut(images_NHWC: Any, crops: list[Crop]) -> Any:
    import numpy as np

    return np.stack([images_NHWC[c.image, c.y : c.y + c.side, c.x : c.x + c.side] for c in crops])


def zoomed(cells: list[Cell]) -> list[Strip]:
    """The crops of the original and of every cell, enlarged without smoothing."""
    original = cells[0].shown.original_NHWC
    crops = find_crops(original)
    strips = [strip("Original", "", cut(original, crops), 168)]
    return strips + [
        strip(cell.label, _psnr(cell), cut(cell.shown.reconstruction_NHWC, crops), 168) for cell in same_images(cells)
    ]


def latent_maps(cell: Cell) -> Strip:
    """The first three principal components of the shown images' latents as red, green and blue."""
    share = ", ".join(f"{100 * s:.0f} %" for s in cell.latent["pca_share"])
    maps_NHW3 = cell.latent["pca_maps"]
    times = max(1, 64 // maps_NHW3.shape[1])  # so that the gaps are as wide as those of the images
    return strip(cell.label, f"{share} of the variance", maps_NHW3.repeat(times, axis=1).repeat(times, axis=2), 96)


def sheets(cells: list[Cell]) -> dict[str, bytes]:
    """Labelled PNGs for Markdown: reconstructions, errors, crops and latents of every cell, the original first."""
    original, same = cells[0].shown.original_NHWC, same_images(cells)
    crops = find_crops(original)
    rebuilt = [(cell.label, cell.shown.reconstruction_NHWC) for cell in same]
    return {
        "reconstructions": sheet([("original", original), *rebuilt]),
        "errors": sheet([("original", original), *((label, error_map(original, x)) for label, x in rebuilt)]),
        "crops": sheet([("original", cut(original, crops)), *((label, cut(x, crops)) for label, x in rebuilt)], 96),
        "latents": sheet([("original", original), *((cell.label, cell.latent["pca_maps"]) for cell in same)]),
    }
