"""One picture of samples beside what each was drawn for: a row a condition, with its picture or its words at the left.

Letters: N images, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ldmlab.pipeline.sheets import as_rgb
from ldmlab.reports.records import SampleSet

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 128  # pixels a side that small pictures are enlarged to, each pixel as often as fits
ROW, ROWS = 8, 12  # samples in a line; lines
GAP, LINE, FONT = 4, 16, 12
INK, PAPER, EDGE = (20, 20, 20), (255, 255, 255), (120, 120, 120)


@dataclass(frozen=True)
class SheetCell:
    """A picture (uint8 [H, W, 3]; None for none), words that stand in its place or below it. asked: it is a condition."""

    picture: Any
    words: str = ""
    asked: bool = False


def condition_sheet(samples: SampleSet, shares: Sequence[float] = ()) -> "Image | None":
    """The first samples of each condition; None where there is nothing to show beside them.

    shares: of an interpolation, how far each sample is; then one line goes from one condition to the other.
    """
    lines = _way(samples, shares) if shares else _rows(samples)
    return None if not lines else _drawn(lines[:ROWS], samples.images_NHWC.shape[1:3])


def _way(samples: SampleSet, shares: Sequence[float]) -> list[list[SheetCell]]:
    """One line: the condition, the way, and the other condition where they are two."""
    shown = np.linspace(0, len(samples) - 1, min(len(samples), ROW)).round().astype(int)
    cells = [SheetCell(samples.images_NHWC[i], f"{shares[i]:.0%}") for i in shown]
    ends = _said(samples, 0).rpartition(", ")[0].split(" → ")
    if len(ends) != 2:  # between two seeds: one condition
        return [[_condition(samples, 0), *cells]]
    return [
        [
            SheetCell(samples.condition(0), ends[0], True),
            *cells,
            SheetCell(samples.condition(len(samples) - 1), ends[1], True),
        ]
    ]


def _rows(samples: SampleSet) -> list[list[SheetCell]]:
    groups: dict[tuple[str, bytes], list[int]] = {}
    for i in range(len(samples)):
        picture = samples.condition(i)
        key = (_said(samples, i), b"" if picture is None else np.asarray(picture).tobytes())
        groups.setdefault(key, []).append(i)
    if all(len(members) == 1 for members in groups.values()) and len(groups) > ROWS:  # pairs, several in a line
        pairs = [
            [_condition(samples, i), SheetCell(samples.images_NHWC[i], _seed(samples.seeds[i], i))]
            for (i,) in groups.values()
        ]
        cells = [cell for pair in pairs for cell in pair] if samples.described else []
        return [cells[begin : begin + ROW] for begin in range(0, len(cells), ROW)]
    lines = []
    for members in groups.values():
        left = _condition(samples, members[0])
        if not left.words and left.picture is None:
            return []
        for begin in range(0, len(members), ROW):
            shown = members[begin : begin + ROW]
            first = left if begin == 0 else SheetCell(None)
            lines.append([first, *(SheetCell(samples.images_NHWC[i], _seed(samples.seeds[i], i)) for i in shown)])
    return lines


def _condition(samples: SampleSet, i: int) -> SheetCell:
    return SheetCell(samples.condition(i), _said(samples, i), asked=True)


def _said(samples: SampleSet, i: int) -> str:
    return samples.description(i) or (samples.class_name(samples.labels[i]) if samples.labels else "")


def _seed(seed: int, i: int) -> str:
    """Seeds that a person chose; of the others, which have nineteen digits, the sample's number."""
    return f"seed {seed}" if seed < 10**9 else f"number {i}"


def _drawn(lines: list[list[SheetCell]], size: tuple[int, int]) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT)
    scale = max(1, round(CELL / max(size)))
    height, width = size[0] * scale, size[1] * scale
    columns = max(map(len, lines))
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(lines) * (height + LINE + GAP) - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, cells in enumerate(lines):
        for column, cell in enumerate(cells):
            x, y = column * (width + GAP), row * (height + LINE + GAP)
            if cell.picture is None:
                _write(draw, font, cell.words, (x, y), (width, height))
                continue
            seen = Image.fromarray(as_rgb(np.asarray(cell.picture)))
            factor = min(width / seen.width, height / seen.height)
            shape = (max(1, int(seen.width * factor)), max(1, int(seen.height * factor)))
            sheet.paste(seen.resize(shape, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX), (x, y))
            draw.rectangle((x, y, x + shape[0] - 1, y + shape[1] - 1), outline=EDGE if cell.asked else None)
            draw.text((x + 2, y + height), _cut(draw, font, cell.words, width - 4), INK, font)
    return sheet


def _write(draw: Any, font: Any, words: str, at: tuple[int, int], room: tuple[int, int]) -> None:
    """Words in the place of a picture, in as many lines as fit."""
    lines, line = [], ""
    for word in words.split():
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font) > room[0] - 8:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    for n, text in enumerate(lines[: room[1] // LINE]):
        draw.text((at[0] + 4, at[1] + 4 + n * LINE), _cut(draw, font, text, room[0] - 8), INK, font)


def _cut(draw: Any, font: Any, text: str, width: int) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
