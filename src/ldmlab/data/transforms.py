"""From a picture file in any usual form to a square 8-bit RGB array.

Shape letters: H W pixels, 3 RGB.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

CROP_RULE = "adm-center-crop/1"
"""Name and version of everything in this file: it is part of the fingerprints of data sets that use it."""


def read_rgb(source: Path | bytes) -> Image.Image:
    """The picture as 8-bit RGB, turned upright.

    The EXIF orientation is applied. Grey, palette, CMYK, YCbCr and 1-bit pictures are converted; 16-bit grey is divided
    by 257 (Pillow's own conversion would clip it). Transparent pictures are composited on white. Of an animation the
    first frame is taken. Embedded colour profiles are not applied, as in the reference code of ADM and LDM.

    Raises what Pillow raises (OSError, SyntaxError, ValueError, Image.DecompressionBombError …) on a damaged file.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        opened.load()
        return _to_rgb(ImageOps.exif_transpose(opened))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey: "I;16" and relatives, "I" from older formats
        grey = np.asarray(picture, dtype=np.int64)
        return Image.fromarray(((np.clip(grey, 0, 65535) + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def center_crop(picture: Image.Image, resolution: int) -> np.ndarray:
    """uint8 [resolution, resolution, 3]: `center_crop_arr` of guided-diffusion (image_datasets.py), which ADM and LDM
    use for ImageNet.

    Halved with a box filter while the short side is at least twice the resolution, then resized with a bicubic filter
    to the short side, then cropped in the centre. A picture smaller than the resolution is enlarged; one of the right
    size is left untouched.
    """
    while min(picture.size) >= 2 * resolution:
        picture = picture.resize((picture.width // 2, picture.height // 2), resample=Image.Resampling.BOX)
    scale = resolution / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    pixels_HW3 = np.array(picture.resize(size, resample=Image.Resampling.BICUBIC))
    top = (pixels_HW3.shape[0] - resolution) // 2
    left = (pixels_HW3.shape[1] - resolution) // 2
    return np.ascontiguousarray(pixels_HW3[top : top + resolution, left : left + resolution])


def fitted(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: `center_crop` for a square; else the largest part of that shape about the centre, bicubic."""
    if height == width:
        return center_crop(picture, height)
    return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC))
