"""How `prepare` stores a cropped picture in a shard.

Shape letters: H W pixels, C channels.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL
from PIL import Image, features

from ldmlab.data.bits import deep_png, pixel_kind
from ldmlab.errors import ConfigError


@dataclass(frozen=True)
class Encoding:
    """How a cropped picture is stored. jpg: `quality` with 4:4:4 chroma; webp: lossy `quality`; png: lossless, quality
    unused. channels, bits: see `bits.opened`; jpg has no fourth channel, and png alone has 16 bits."""

    format: Literal["jpg", "png", "webp"]
    quality: int
    channels: int = 3
    bits: int = 8

    def __post_init__(self) -> None:
        if self.format not in ("jpg", "png", "webp"):
            raise ConfigError(f"prepare.format={self.format!r} must be one of jpg, png, webp.")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"prepare.quality={self.quality} must lie in 1 … 100.")
        if self.channels == 4 and self.format == "jpg":
            raise ConfigError(
                "prepare.format=jpg cannot keep the fourth channel of data.channels=4. Use prepare.format=png or webp."
            )
        if self.bits != 8 and self.format != "png":
            raise ConfigError(
                f"prepare.format={self.format} keeps 8 bits of data.bits={self.bits}. Use prepare.format=png."
            )

    def __call__(self, square_HWC: np.ndarray) -> bytes:
        if square_HWC.dtype == np.uint16:
            return deep_png(square_HWC)
        out = io.BytesIO()
        picture = Image.fromarray(square_HWC[..., 0] if square_HWC.shape[2] == 1 else square_HWC)
        if self.format == "jpg":
            picture.save(out, "JPEG", quality=self.quality, subsampling=0)
        elif self.format == "webp":
            picture.save(out, "WEBP", quality=self.quality, method=4)
        else:
            picture.save(out, "PNG")
        return out.getvalue()

    def said(self) -> dict[str, Any]:
        """For the manifest."""
        return {"format": self.format, "quality": self.quality, **pixel_kind(self.channels, self.bits)}

    def versions(self) -> dict[str, str | None]:
        """Libraries that decide the bytes."""
        codec = {"jpg": "libjpeg_turbo", "webp": "webp", "png": "zlib"}[self.format]
        return {
            "pillow": PIL.__version__,
            "libjpeg_turbo": features.version("libjpeg_turbo"),
            codec: features.version(codec),
        }
