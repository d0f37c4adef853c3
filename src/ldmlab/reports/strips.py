"""Rows of pictures, each row one image. Letters: N images, H W space.

Every strip is one PNG with transparent gaps, so that the columns of all strips line up.
"""

from dataclasses import dataclass
from typing import Any

from ldmlab.reports.pictures import data_uri, png_bytes, reduction

SHEET_LABEL = 108  # pixels


@dataclass(frozen=True)
class Strip:
    """A row of pictures as one image; `width` CSS pixels."""

    label: str
    detail: str
    uri: str
    width: int
    error: bool = False


def joined(images_NHWC: Any, gap: int) -> Any:
    """The images side by side with transparent gaps, uint8 [H, W', 4]."""
    import numpy as np

    N, H, W, _ = images_NHWC.shape
    sheet = np.zeros((H, N * (W + gap) - gap, 4), np.uint8)
    for n, image_HWC in enumerate(images_NHWC):
        sheet[:, n * (W + gap) : n * (W + gap) + W, :3] = image_HWC
        sheet[:, n * (W + gap) : n * (W + gap) + W, 3] = 255
    return sheet


def reduced(images_NHWC: Any) -> Any:
    """Averaged down by the whole factor that a page allows."""
    import numpy as np
    from PIL import Image

    factor = reduction(images_NHWC.shape[2])
    if factor == 1:
        return images_NHWC
    return np.stack([np.asarray(Image.fromarray(np.ascontiguousarray(i)).reduce(factor)) for i in images_NHWC])


def strip(label: str, detail: str, images_NHWC: Any, cell: int, error: bool = False) -> Strip:
    """`cell`: CSS pixels a picture is wide."""
    images_NHWC = reduced(images_NHWC)
    W = images_NHWC.shape[2]
    gap = max(1, round(W / 24))
    sheet = joined(images_NHWC, gap)
    return Strip(label, detail, data_uri(png_bytes(sheet), "image/png"), round(sheet.shape[1] * cell / W), error)


def sheet(rows: list[tuple[str, Any]], side: int = 64) -> bytes:
    """Rows of (label, images) as one PNG on white; pictures enlarged by pixel or averaged down to about `side` pixels."""
    import numpy as np
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    gap = 2
    page = Image.new("RGB", (SHEET_LABEL + len(rows[0][1]) * (side + gap), len(rows) * (side + gap)), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 13)
    for r, (label, images_NHWC) in enumerate(rows):
        top = r * (side + gap)
        pen.text((4, top + side // 2), label, fill="#1b1d21", font=font, anchor="lm")
        for n, image_HWC in enumerate(images_NHWC):
            picture = Image.fromarray(np.ascontiguousarray(image_HWC))
            how = Image.Resampling.NEAREST if picture.width < side else Image.Resampling.BOX
            page.paste(picture.resize((side, side), how), (SHEET_LABEL + n * (side + gap), top))
    return png_bytes(np.asarray(page))
