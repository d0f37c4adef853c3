"""Pictures of 8 or 16 bits a channel: opened, cropped, and 16 bits written as PNG.

Pillow reads grey of 16 bits and makes 8 of colours with 16; torchvision reads every PNG of 16 bits and writes none.

Shape letters: H W pixels, C channels: 1 grey, 3 RGB, 4 RGB and opacity; K channels of a file: also 2, grey and opacity.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ldmlab.data.transforms import center_crop, read_picture

DEEPEST = 65_535
LUMA = np.array([19_595, 38_470, 7_471])  # of 65 536: Pillow's whole numbers for ITU-R 601
_COLOUR_TYPE = {1: 0, 3: 2, 4: 6}  # of PNG


@dataclass(frozen=True)
class Deep:
    """A picture of 16 bits: uint16 [H, W, C]."""

    pixels_HWC: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as of a picture of Pillow."""
        return self.pixels_HWC.shape[1], self.pixels_HWC.shape[0]

    def square(self, resolution: int) -> np.ndarray:
        """uint16 [resolution, resolution, C], by `transforms.center_crop`; between its two filters nothing is rounded."""
        planes = np.moveaxis(self.pixels_HWC.astype(np.float32), 2, 0)
        found_HWC = np.concatenate([center_crop(Image.fromarray(plane), resolution) for plane in planes], axis=2)
        return found_HWC.round().clip(0, DEEPEST).astype(np.uint16)


Picture = Image.Image | Deep


def opened(source: Path | bytes, channels: int = 3, bits: int = 8) -> Picture:
    """A picture in as many channels and bits. 8: `transforms.read_picture`. 16: what has 8 bits is multiplied by 257, which is exact.

    16 bits are read from PNG, grey and colours, and from TIFF in grey. Raises ValueError for TIFF with more than 8 bits in colours,
    which Pillow would make 8; for whole numbers beyond 16 bits, and floating point ones; and what damaged files raise.
    """
    if bits == 8:
        return read_picture(source, channels)
    content = source if isinstance(source, bytes) else source.read_bytes()
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:25] == b"\x10":  # the bit depth in its head
        return Deep(_in_channels(_png(content), channels))
    with Image.open(io.BytesIO(content)) as found:
        depths = getattr(found, "tag_v2", {}).get(258, (8,))  # BitsPerSample of TIFF
        if found.mode.startswith("I"):
            grey_HW = np.asarray(ImageOps.exif_transpose(found)).astype(np.int64)
            if max(depths) not in (8, 16) or grey_HW.min() < 0 or grey_HW.max() > DEEPEST:
                raise ValueError(f"grey of {max(depths)} bits; save it with 16, 0 … {DEEPEST}")
            return Deep(_in_channels(grey_HW[..., None], channels))
        if max(depths) > 8:
            raise ValueError(
                f"a TIFF of {max(depths)} bits in {found.mode}, which Pillow cannot read as such; save it as PNG of 16 bits, "
                "or set data.bits=8"
            )
    pixels = np.asarray(read_picture(content, channels)).astype(np.uint16) * 257
    return Deep(pixels if pixels.ndim == 3 else pixels[..., None])


def square(picture: Picture, resolution: int) -> np.ndarray:
    """uint8 or uint16 [resolution, resolution, C]: `transforms.center_crop`."""
    return picture.square(resolution) if isinstance(picture, Deep) else center_crop(picture, resolution)


def pixel_kind(channels: int, bits: int) -> dict[str, int]:
    """What a fingerprint says of them: nothing of 8-bit RGB, so that data sets before there was a choice keep theirs."""
    return {**({} if channels == 3 else {"channels": channels}), **({} if bits == 8 else {"bits": bits})}


def _png(content: bytes) -> np.ndarray:
    """int64 [H, W, K], upright."""
    from torchvision.io import ImageReadMode, decode_image

    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels_KHW = decode_image(data, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    if pixels_KHW.dtype != torch.uint16:
        raise ValueError(f"a PNG of 16 bits that was read as {pixels_KHW.dtype}")
    return np.moveaxis(pixels_KHW.numpy(), 0, 2).astype(np.int64)


def _in_channels(pixels_HWK: np.ndarray, channels: int) -> np.ndarray:
    """uint16 [H, W, C] of a file's grey or colours with or without opacity; opacity is laid on white unless it is kept."""
    K = pixels_HWK.shape[2]
    colour, opacity = (pixels_HWK[..., :-1], pixels_HWK[..., -1:]) if K in (2, 4) else (pixels_HWK, None)
    if channels == 4:
        opacity = np.full_like(colour[..., :1], DEEPEST) if opacity is None else opacity
        found = np.concatenate([colour if K > 2 else np.repeat(colour, 3, axis=2), opacity], axis=2)
    else:
        if opacity is not None:
            colour = (colour * opacity + DEEPEST * (DEEPEST - opacity) + DEEPEST // 2) // DEEPEST
        if channels == 1 and K > 2:
            colour = (colour @ LUMA[:, None] + 32_768) >> 16
        found = np.repeat(colour, 3, axis=2) if channels == 3 and K < 3 else colour
    return np.ascontiguousarray(found.astype(np.uint16))


def deep_png(pixels_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits (https://www.w3.org/TR/png-3): rows less the row above (filter 2), deflated. The same pixels give the same bytes."""
    height, width, channels = pixels_HWC.shape
    row_HB = pixels_HWC.astype(">u2").reshape(height, -1).view(np.uint8)
    above_HB = np.concatenate([np.zeros_like(row_HB[:1]), row_HB[:-1]])
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), row_HB - above_HB], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPE[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    name, content = part
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
