"""Samples of a study side by side: a column is one seed and one class, a row one cell."""

from typing import Any, NamedTuple

from ldmlab.reports.pictures import matching
from ldmlab.reports.strips import Strip, sheet, strip
from ldmlab.reports.study_cells import Cell, Study

COLUMNS = 10
WIDE = 72  # CSS pixels of a picture


class Rows(NamedTuple):
    """name: of the file · title: "" for the only one · cells, and the places of their pictures"""

    name: str
    title: str
    cells: tuple[tuple[str, Cell], ...]
    places: tuple[tuple[int, ...], ...]

    @property
    def images(self) -> list[tuple[str, Any]]:
        """(row label, uint8 [N, H, W, 3])"""
        import numpy as np

        return [
            (label, np.asarray(cell.samples.pictures.images_NHWC[list(places)]))
            for (label, cell), places in zip(self.cells, self.places, strict=True)
        ]

    @property
    def strips(self) -> list[Strip]:
        return [strip(label, "", images_NHWC, WIDE) for label, images_NHWC in self.images]

    @property
    def sheet(self) -> bytes:
        """A labelled PNG for Markdown."""
        return sheet(self.images)


def side_by_side(study: Study) -> list[Rows]:
    """Without an axis all cells; along an axis one picture a line, the axis from top to bottom. Only what shares seeds
    and classes."""
    axis = study.axis
    if axis is None:
        groups = [("samples", "", [(cell.label, cell) for cell in study.cells])]
    else:
        groups = [
            (
                f"samples-{n}" if len(study.lines) > 1 else "samples",
                line.label,
                [(f"{cell.at(axis):g}", cell) for cell in line.cells],
            )
            for n, line in enumerate(study.lines, 1)
        ]
    found = []
    for name, title, cells in groups:
        places = matching([cell.samples.pictures for _, cell in cells], COLUMNS)
        if places:
            found.append(Rows(name, title, tuple(cells), tuple(map(tuple, places))))
    return found


def columns_said(study: Study, shown: list[Rows]) -> str:
    """Which pictures stand in the columns: classes, and the numbers by which to ask for them again."""
    first, places = shown[0].cells[0][1].samples.pictures, shown[0].places[0]
    classes = f" and one class ({', '.join(first.class_name(first.labels[i]) for i in places)})" if first.labels else ""
    rows = f"; {study.axis.title} at the left" if study.axis is not None else ""
    return f"Each column is one seed{classes}, images {', '.join(map(str, places))} of each cell, unselected{rows}."
