"""Generated images as rows a reader can follow: by class, by snapshot, or by run for the same seed. Pictures are data
URIs.

images_NHWC: uint8, N images, H W pixels. A picture up to `LARGEST` pixels is embedded as it is (PNG, lossless); a
larger one is averaged down by a whole factor, which the page states.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmlab.reports.collect import Pictures, Run, Snapshot

LARGEST = 128
PIXEL_ART = 48  # up to here a picture is enlarged with hard pixel edges


@dataclass(frozen=True)
class Tile:
    """One picture. `index` is its place in images.npy."""

    uri: str
    index: int
    seed: int | None
    caption: str
    anchor: str


@dataclass(frozen=True)
class Strip:
    """A row of pictures with its caption."""

    caption: str
    detail: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Grid:
    """Rows of pictures of one size. cell: CSS pixels a picture is wide, a whole multiple of its own where it is pixel
    art.
    """

    strips: tuple[Strip, ...]
    cell: int
    columns: int
    pixelated: bool
    reduced: int  # factor by which the embedded pictures were averaged down
    shown: int
    of: int


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_bytes(image_HWC: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image_HWC).save(out, format="PNG", optimize=True)
    return out.getvalue()


def reduction(width: int) -> int:
    """Whole factor that brings a picture of `width` pixels to at most LARGEST."""
    return -(-width // LARGEST)


def tile_uri(image_HWC: Any) -> str:
    """One picture as a PNG data URI, averaged down when it is large."""
    import numpy as np
    from PIL import Image

    factor = reduction(max(image_HWC.shape[:2]))
    image_HWC = np.ascontiguousarray(image_HWC)
    if factor > 1:
        image_HWC = np.asarray(Image.fromarray(image_HWC).reduce(factor))
    return data_uri(png_bytes(image_HWC), "image/png")


def cell_size(width: int) -> tuple[int, int]:
    """(CSS pixels, columns) for pictures `width` pixels wide: whole multiples up to 96 for small ones."""
    if width <= PIXEL_ART:
        return width * max(1, 96 // width), 8
    return (96, 8) if width <= 96 else (128, 6)


def _tile(pictures: Pictures, index: int, prefix: str) -> Tile:
    seed = pictures.seeds[index] if pictures.seeds else None
    said = [f"image {index}"]
    if pictures.labels:
        said.append(pictures.class_name(pictures.labels[index]))
    if seed is not None:
        said.append(f"seed {seed}")
    return Tile(tile_uri(pictures.images_NHWC[index]), index, seed, " · ".join(said), f"{prefix}-{index}")


def _seeds(tiles: list[Tile]) -> str:
    """ "seeds 0–7" or "seeds 3, 13, 23": so that a picture can be asked for again."""
    seeds = [tile.seed for tile in tiles if tile.seed is not None]
    if not seeds:
        return ""
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}–{seeds[-1]}"
    if max(seeds) > 99_999:  # hashed seeds fill lines and say nothing: the list of seeds has them
        return f"images {', '.join(str(tile.index) for tile in tiles)}"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _grid(strips: list[Strip], pictures: Pictures, columns: int) -> Grid:
    height, width = pictures.images_NHWC.shape[1:3]
    return Grid(
        tuple(strips),
        cell=cell_size(width)[0],
        columns=columns,
        pixelated=width <= PIXEL_ART,
        reduced=reduction(max(height, width)),
        shown=sum(len(strip.tiles) for strip in strips),
        of=len(pictures),
    )


def by_class(pictures: Pictures, prefix: str, most_rows: int = 10) -> Grid:
    """A row per class that occurs (the first `most_rows`), in label order; without labels, consecutive images."""
    columns = cell_size(pictures.images_NHWC.shape[2])[1]
    strips = []
    if pictures.labels:
        for label in sorted(set(pictures.labels))[:most_rows]:
            indices = [i for i, other in enumerate(pictures.labels) if other == label][:columns]
            tiles = [_tile(pictures, i, prefix) for i in indices]
            strips.append(Strip(pictures.class_name(label), _seeds(tiles), tuple(tiles)))
    else:
        for start in range(0, min(len(pictures), columns * 6), columns):
            tiles = [_tile(pictures, i, prefix) for i in range(start, min(start + columns, len(pictures)))]
            strips.append(Strip("", _seeds(tiles), tuple(tiles)))
    return _grid(strips, pictures, columns)


def _key(pictures: Pictures, i: int) -> tuple[int, int | None]:
    return pictures.seeds[i], pictures.labels[i] if pictures.labels else None


def _spread_over_classes(pictures: Pictures, indices: list[int], n: int) -> list[int]:
    """n of the indices, taking the classes in turn so that few pictures show many of them."""
    if not pictures.labels:
        return indices[:n]
    turns: dict[int, int] = {}
    ranked = []
    for i in indices:
        turn = turns[pictures.labels[i]] = turns.get(pictures.labels[i], 0) + 1
        ranked.append((turn, pictures.labels[i], i))
    return [i for _, _, i in sorted(ranked)[:n]]


def matching(each: list[Pictures], n: int) -> list[list[int]]:
    """For each set the places of up to n pictures that share seed and condition with those of all others, the classes in
    turn; empty when fewer than two sets can be matched.
    """
    if len(each) < 2 or not all(p.seeds for p in each) or len({p.images_NHWC.shape[1:] for p in each}) > 1:
        return []
    where = [{_key(p, i): i for i in reversed(range(len(p)))} for p in each]
    common = [i for i in range(len(each[0])) if all(_key(each[0], i) in other for other in where)]
    keys = [_key(each[0], i) for i in _spread_over_classes(each[0], common, n)]
    return [[index[key] for key in keys] for index in where] if keys else []


def same_seeds(entries: list[tuple[str, Pictures, str]]) -> Grid | None:
    """One row per entry (caption, pictures, anchor prefix), columns share seed and condition. None when fewer than
    two entries can be matched.
    """
    entries = [entry for entry in entries if entry[1].seeds]
    if not entries:
        return None
    columns = cell_size(entries[0][1].images_NHWC.shape[2])[1]
    found = matching([pictures for _, pictures, _ in entries], columns)
    strips = [
        Strip(caption, "", tuple(_tile(pictures, i, prefix) for i in chosen))
        for (caption, pictures, prefix), chosen in zip(entries, found, strict=False)
    ]
    return _grid(strips, entries[0][1], columns) if found else None


def last_drawn(run: Run) -> Snapshot | None:
    """The latest snapshot of a run whose pictures are in the store."""
    drawn = [s for s in run.snapshots if s.samples is not None and s.samples.done]
    return drawn[-1] if drawn else None


def contact_sheet(pictures: Pictures, side: int = 7) -> tuple[str, int]:
    """(data URI, CSS width) of side × side pictures as one PNG with a transparent gap, the classes in turn."""
    import numpy as np
    from PIL import Image

    chosen = _spread_over_classes(pictures, list(range(len(pictures))), side * side)
    factor = -(-pictures.images_NHWC.shape[2] // 68)
    small = [np.asarray(Image.fromarray(np.ascontiguousarray(pictures.images_NHWC[i])).reduce(factor)) for i in chosen]
    h, w = small[0].shape[:2]
    gap = max(1, round(w / 32))
    columns = min(side, len(small))
    rows = -(-len(small) // columns)
    sheet = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, 4), np.uint8)
    for n, image in enumerate(small):
        y, x = (n // columns) * (h + gap), (n % columns) * (w + gap)
        sheet[y : y + h, x : x + w, :3], sheet[y : y + h, x : x + w, 3] = image, 255
    return data_uri(png_bytes(sheet), "image/png"), sheet.shape[1] * max(1, 480 // sheet.shape[1])


def file_uri(path: Path) -> tuple[str, int, int]:
    """(data URI, width, height) of a picture on disk. Raises DataError when it cannot be read."""
    from PIL import Image

    from ldmlab.errors import DataError

    try:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
    except OSError as error:
        raise DataError(f"{path} is damaged ({error}). Delete it and run the command that made it again.") from None
    return data_uri(path.read_bytes(), "image/png"), width, height
