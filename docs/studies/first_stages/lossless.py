"""Squares of 64 pixels from photographs that were never JPEG, for the comparison of first stages with JPEG and WebP.

    python docs/studies/first_stages/lossless.py ../shared/data/photos out/lossless64

Each PNG is halved in size (Lanczos), so that a camera's own blur is gone, and cut into squares side by side. Two photographs go
to train/ (rounded components are fitted there), the others to val/.
"""

import sys
from pathlib import Path

from PIL import Image

SIDE = 64
TRAIN = 2


def main(photos: Path, out: Path) -> None:
    files = sorted(photos.glob("*.png"))
    for n, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        folder = out / ("train" if n < TRAIN else "val") / "photo"
        folder.mkdir(parents=True, exist_ok=True)
        for y in range(0, image.height - SIDE + 1, SIDE):
            for x in range(0, image.width - SIDE + 1, SIDE):
                image.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"{file.stem}-{y:03}-{x:03}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
