"""From a picture file in any usual form to a square 8-bit RGB array.

Shape letters: H W pixels, C channels: 1 grey, 3 RGB, 4 RGB and opacity.
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


def read_picture(source: Path | bytes, channels: int = 3) -> Image.Image:
    """As `read_rgb`, in as many channels: 1, grey, of colours their luma (ITU-R 601); 4, RGB and opacity, 255 where a file has none.
    16 bits become 8 in all of them (`bits.opened` keeps them)."""
    if channels == 3:
        return read_rgb(source)
    if channels == 1:
        return read_rgb(source).convert("L")  # grey there and back is exact
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        opened.load()
        picture = ImageOps.exif_transpose(opened)
        sixteen = picture.mode.startswith("I")
        return (_to_rgb(picture) if sixteen else picture).convert("RGBA")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("floating point numbers, which have no largest value; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16-bit grey: "I;16" and relatives, "I" from older formats
        grey = np.asarray(picture, dtype=np.int64)
        return Image.fromarray(((np.clip(grey, 0, 65535) + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def center_crop(picture: Image.Image, resolution: int) -> np.ndarray:
    """uint8 [resolution, resolution, C]: `center_crop_arr` of guided-diffusion (image_datasets.py), which ADM and LDM
    use for ImageNet.

    Halved with a box filter while the short side is at least twice the resolution, then resized with a bicubic filter
    to the short side, then cropped in the centre. A picture smaller than the resolution is enlarged; one of the right
    size is left untouched.
    """
    while min(picture.size) >= 2 * resolution:
        picture = picture.resize((picture.width // 2, picture.height // 2), resample=Image.Resampling.BOX)
    w, h, left, top = placed(picture.width, picture.height, resolution)
    pixels_HWC = np.array(picture.resize((w, h), resample=Image.Resampling.BICUBIC))
    square_HWC = np.ascontiguousarray(pixels_HWC[top : top + resolution, left : left + resolution])
    return square_HWC if square_HWC.ndim == 3 else square_HWC[..., None]


def placed(width: int, height: int, resolution: int) -> tuple[int, int, int, int]:
    """Width and height to which `center_crop` resizes a picture, and the left and top edge of the square that it cuts out."""
    while min(width, height) >= 2 * resolution:
        width, height = width // 2, height // 2
    scale = resolution / min(width, height)
    w, h = round(width * scale), round(height * scale)
    return w, h, (w - resolution) // 2, (h - resolution) // 2


def fitted(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, C]: `center_crop` for a square; else the largest part of that shape about the centre, bicubic."""
    if height == width:
        return center_crop(picture, height)
    pixels = np.array(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC))
    return pixels if pixels.ndim == 3 else pixels[..., None]
