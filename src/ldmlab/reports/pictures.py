"""Images as rows that a reader can follow, each row captioned: in the page as data URIs, in Markdown as a labelled sheet.

images_NHWC: uint8, N images, H W pixels. A picture up to `LARGEST` pixels is embedded as it is (PNG, lossless); a larger
one is averaged down by a whole factor, which the page states.
"""

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldmlab.errors import DataError
from ldmlab.pipeline.sheets import as_rgb, tiled
from ldmlab.reports.records import Run, SampleSet, Snapshot

LARGEST = 128
PIXEL_ART = 48  # up to here a picture is enlarged with hard pixel edges
SHEET_LABEL, SHEET_SIDE, SHEET_GAP = 108, 64, 2  # pixels; the label's column is wider where a label needs it


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture. index: its place in images.npy. condition_HWC: the picture it was drawn from, shown before it.
    text: stands under it.
    """

    image_HWC: Any
    caption: str
    index: int = 0
    seed: int | None = None
    anchor: str = ""
    condition_HWC: Any = None
    text: str = ""

    @cached_property
    def uri(self) -> str:
        return tile_uri(self.image_HWC)

    @property
    def condition_uri(self) -> str:
        return "" if self.condition_HWC is None else tile_uri(self.condition_HWC)


@dataclass(frozen=True, eq=False)
class PictureRow:
    """label and detail stand before the tiles. near: belongs to the row above it."""

    label: str
    detail: str
    tiles: tuple[Tile, ...]
    near: bool = False


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows of pictures of one size. name: of the sheet in Markdown. cell: CSS pixels a picture is wide. of: how many
    there are to choose from. scroll: on a narrow screen the rows scroll sideways rather than shrink.
    """

    name: str
    rows: tuple[PictureRow, ...]
    cell: int
    columns: int
    of: int = 0
    scroll: bool = False

    @property
    def side(self) -> int:
        return max(self.rows[0].tiles[0].image_HWC.shape[:2])

    @property
    def pixelated(self) -> bool:
        return self.side <= PIXEL_ART

    @property
    def conditioned(self) -> bool:
        return any(tile.condition_HWC is not None for row in self.rows for tile in row.tiles)

    @property
    def shown(self) -> int:
        return sum(len(row.tiles) for row in self.rows)

    @property
    def sizes(self) -> str:
        """How the embedded pictures differ in size from the stored ones."""
        factor = reduction(self.side)
        return f"Shown at 1/{factor} size." if factor > 1 else "Enlarged without smoothing." if self.pixelated else ""

    @property
    def alt(self) -> str:
        return self.name


@dataclass(frozen=True)
class Picture:
    """One picture file as it is. names: of its rows, from top to bottom. least: CSS pixels it is wide at least."""

    name: str
    png: bytes
    width: int
    least: int
    names: tuple[str, ...]

    @property
    def uri(self) -> str:
        return data_uri(self.png, "image/png")

    @property
    def shown_width(self) -> int:
        return self.width * max(940 // self.width, 1)

    @property
    def alt(self) -> str:
        return f"Rows: {', '.join(self.names)}"


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_bytes(image_HWC: Any) -> bytes:
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.asarray(image_HWC)).save(out, format="PNG", optimize=True)
    return out.getvalue()


def reduction(width: int, largest: int = LARGEST) -> int:
    """Whole factor that brings a picture of `width` pixels to at most `largest`."""
    return -(-width // largest)


def reduced(image_HWC: Any, factor: int) -> Any:
    """Averaged down by a whole factor."""
    import numpy as np
    from PIL import Image

    image_HWC = as_rgb(np.ascontiguousarray(image_HWC))
    return image_HWC if factor == 1 else np.asarray(Image.fromarray(image_HWC).reduce(factor))


def tile_uri(image_HWC: Any) -> str:
    return data_uri(png_bytes(reduced(image_HWC, reduction(max(image_HWC.shape[:2])))), "image/png")


def read_picture(path: Path, name: str, names: tuple[str, ...], side: int = 72) -> Picture:
    """A PNG on disk with rows of square pictures. Raises DataError when it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
    except OSError as error:
        raise DataError(f"{path} is damaged ({error}). Delete it and run the command that made it again.") from None
    columns = max(1, round(width / (height / len(names))))
    return Picture(name, path.read_bytes(), width, max(columns * side, 358), names)


# ---- sheets ---------------------------------------------------------------------------------------------------------


def opaque(images_NHWC: Any) -> Any:
    """With a fourth channel, so that the gaps of a sheet differ from black: [N, H, W, 4]."""
    import numpy as np

    return np.pad(images_NHWC, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)


def contact_sheet(pictures: SampleSet, side: int = 7) -> Picture:
    """side × side pictures as one PNG with transparent gaps, the classes in turn."""
    import numpy as np

    chosen = spread_over_classes(pictures, list(range(len(pictures))), side * side)
    factor = reduction(pictures.images_NHWC.shape[2], 68)
    small_NHWC = np.stack([reduced(pictures.images_NHWC[i], factor) for i in chosen])
    gap = max(1, round(small_NHWC.shape[2] / 32))
    sheet_HWC = tiled(opaque(small_NHWC), min(side, len(chosen)), gap=gap, ground=0)
    width = sheet_HWC.shape[1]
    return Picture("", png_bytes(sheet_HWC), width, width * max(1, 480 // width), ())


def sheet(pictures: Pictures, side: int = SHEET_SIDE) -> bytes:
    """The rows with their labels as one PNG on white; pictures enlarged by pixel or averaged down to `side` pixels."""
    import numpy as np
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    rows = [[p for t in row.tiles for p in (t.condition_HWC, t.image_HWC) if p is not None] for row in pictures.rows]
    step = side + SHEET_GAP
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 13)
    labels = [(row.label or row.detail).replace("\n", " ") for row in pictures.rows]
    left = max(SHEET_LABEL, 12 + max((round(font.getlength(label)) for label in labels), default=0))
    page = Image.new("RGB", (left + max(map(len, rows)) * step, len(rows) * step), "white")
    pen = ImageDraw.Draw(page)
    for r, (label, images) in enumerate(zip(labels, rows, strict=True)):
        pen.text((4, r * step + side // 2), label, fill="#1b1d21", font=font, anchor="lm")
        for n, image_HWC in enumerate(images):
            picture = Image.fromarray(as_rgb(np.ascontiguousarray(image_HWC)))
            how = Image.Resampling.NEAREST if picture.width < side else Image.Resampling.BOX
            page.paste(picture.resize((side, side), how), (left + n * step, r * step))
    return png_bytes(np.asarray(page))


# ---- rows of samples ------------------------------------------------------------------------------------------------


def cell_size(width: int) -> tuple[int, int]:
    """(CSS pixels, columns) for pictures `width` pixels wide: whole multiples up to 96 for small ones."""
    if width <= PIXEL_ART:
        return width * max(1, 96 // width), 8
    return (96, 8) if width <= 96 else (128, 6)


def tile(pictures: SampleSet, index: int, prefix: str = "") -> Tile:
    """One sample with its condition. prefix: of the anchor that it leads to."""
    seed = pictures.seeds[index] if pictures.seeds else None
    said = [f"image {index}", pictures.class_name(pictures.labels[index]) if pictures.labels else ""]
    said += ["" if seed is None else f"seed {seed}", pictures.description(index)]
    anchor = f"{prefix}-{index}" if prefix else ""
    condition, text = pictures.condition(index), pictures.description(index)
    return Tile(pictures.images_NHWC[index], " · ".join(filter(None, said)), index, seed, anchor, condition, text)


def _seeds(tiles: list[Tile]) -> str:
    """ "seeds 0–7" or "seeds 3, 13, 23": by which a picture can be made again."""
    seeds = [tile.seed for tile in tiles if tile.seed is not None]
    if not seeds:
        return ""
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}–{seeds[-1]}"
    if max(seeds) > 99_999:  # hashed seeds fill lines and say nothing: the list of seeds has them
        return f"images {', '.join(str(tile.index) for tile in tiles)}"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def by_class(pictures: SampleSet, prefix: str, name: str = "samples", most_rows: int = 10) -> Pictures:
    """A row per class that occurs (the first `most_rows`), in label order; without labels, consecutive images."""
    cell, columns = cell_size(pictures.images_NHWC.shape[2])
    if pictures.described:
        columns //= 2  # a condition beside each picture, or a text under it
    if pictures.labels:
        kinds = sorted(set(pictures.labels))[:most_rows]
        groups = [(pictures.class_name(k), [i for i, own in enumerate(pictures.labels) if own == k]) for k in kinds]
    else:
        every = list(range(min(len(pictures), columns * 6)))
        groups = [("", every[start : start + columns]) for start in range(0, len(every), columns)]
    rows = []
    for label, indices in groups:
        tiles = [tile(pictures, i, prefix) for i in indices[:columns]]
        rows.append(PictureRow(label, _seeds(tiles), tuple(tiles)))
    return Pictures(name, tuple(rows), cell, columns, len(pictures))


def spread_over_classes(pictures: SampleSet, indices: list[int], n: int) -> list[int]:
    """n of the indices, taking the classes in turn so that few pictures show many of them."""
    if not pictures.labels:
        return indices[:n]
    turns: dict[int, int] = {}
    ranked = []
    for i in indices:
        turn = turns[pictures.labels[i]] = turns.get(pictures.labels[i], 0) + 1
        ranked.append((turn, pictures.labels[i], i))
    return [i for _, _, i in sorted(ranked)[:n]]


def matching(each: list[SampleSet], n: int) -> list[list[int]]:
    """For each set the places of up to n pictures that share seed and condition with those of all others, the classes in
    turn; empty when fewer than two sets can be matched.
    """
    if len(each) < 2 or not all(p.seeds for p in each) or len({p.images_NHWC.shape[1:] for p in each}) > 1:
        return []
    where = [{p.key(i): i for i in reversed(range(len(p)))} for p in each]
    common = [i for i in range(len(each[0])) if all(each[0].key(i) in other for other in where)]
    keys = [each[0].key(i) for i in spread_over_classes(each[0], common, n)]
    return [[index[key] for key in keys] for index in where] if keys else []


def same_seeds(entries: list[tuple[str, SampleSet, str]], name: str = "same-seeds", n: int = 0) -> Pictures | None:
    """One row per entry (caption, pictures, anchor prefix), columns share seed and condition, n at most (0: as many as
    fit). None when fewer than two entries can be matched.
    """
    entries = [entry for entry in entries if entry[1].seeds]
    if not entries:
        return None
    cell, columns = cell_size(entries[0][1].images_NHWC.shape[2])
    found = matching([pictures for _, pictures, _ in entries], n or columns)
    rows = [
        PictureRow(caption, "", tuple(tile(pictures, i, prefix) for i in chosen))
        for (caption, pictures, prefix), chosen in zip(entries, found, strict=False)
    ]
    return Pictures(name, tuple(rows), 72 if n else cell, n or columns, len(entries[0][1]), bool(n)) if found else None


def strips(name: str, rows: list[tuple[str, str, Any, bool]], cell: int) -> Pictures:
    """(label, detail, images, whether it belongs to the row above) as rows of pictures of `cell` CSS pixels."""
    made = [
        PictureRow(label, detail, tuple(Tile(image, f"{label or name} {i}") for i, image in enumerate(images)), near)
        for label, detail, images, near in rows
    ]
    return Pictures(name, tuple(made), cell, max(len(row.tiles) for row in made), scroll=True)


def last_drawn(run: Run) -> Snapshot | None:
    """The latest snapshot of a run whose pictures are in the store."""
    drawn = [s for s in run.snapshots if s.samples is not None and s.samples.done]
    return drawn[-1] if drawn else None
