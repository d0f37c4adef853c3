"""The cells of a study of first stages: each run's `reconstructions` stage with what lies beside its scores.

Shape letters: N images, C channels, H W space, S noise levels.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import DataError
from ldmlab.reports.collect import Run, Score, StageRecord, again, read_json, read_score

BITS = 24  # of a pixel of an 8-bit colour image


class Shown(NamedTuple):
    """The images that every cell shows, and what became of them; uint8 [N, H, W, 3]."""

    original_NHWC: Any
    reconstruction_NHWC: Any


@dataclass(frozen=True)
class Cell:
    """One trained first stage. `facts` is its facts.json; `label` tells it from the other cells."""

    run: Run
    record: StageRecord
    facts: dict[str, Any]
    label: str = ""

    @property
    def f(self) -> int:
        return int(self.facts["f"])

    @property
    def c(self) -> int:
        return int(self.facts["c"])

    @property
    def codes(self) -> int | None:
        return self.facts["codes"]

    @property
    def regulariser(self) -> str:
        return str(self.facts["regulariser"])

    @property
    def option(self) -> str:
        """What was chosen as `ae=…`."""
        return self.record.folder.name.rpartition("-")[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        c, h, w = self.facts["latent_shape"]
        return c, h, w

    @property
    def elements(self) -> int:
        c, h, w = self.latent_shape
        return c * h * w

    @property
    def resolution(self) -> int:
        return int(self.facts["resolution"])

    @property
    def bits_ratio(self) -> float | None:
        """Bits of the 8-bit image over bits of the latent; None where the latent has no stated bits."""
        rate = self.record.scores.get("bits_per_pixel")
        return BITS / rate.value if rate is not None and rate.value > 0 else None

    @property
    def parameters(self) -> dict[str, int]:
        return dict(self.facts["parameters"])

    @property
    def speed(self) -> dict[str, Any]:
        return dict(self.facts["speed"])

    @property
    def training_images(self) -> int:
        return int(self.facts["training_images"])

    @property
    def training_seconds(self) -> float | None:
        stage = self.run.stage("autoencoder")
        return None if stage is None else stage.seconds

    @property
    def is_of_originals(self) -> Score | None:
        raw = self.facts["is_of_originals"]
        return None if raw is None else read_score(raw, "facts.json: is_of_originals", self.record.command)

    @cached_property
    def latent(self) -> dict[str, Any]:
        """Arrays of latent.npz (`stages.reconstruction.Pass.latent`)."""
        return read_arrays(self.record.folder / "latent.npz", self.record.command)

    @cached_property
    def shown(self) -> Shown:
        arrays = read_arrays(self.record.folder / "shown.npz", self.record.command)
        return Shown(arrays["original"], arrays["reconstruction"])


def read_arrays(path: Path, command: str) -> dict[str, Any]:
    """All arrays of an npz without pickled objects. Raises DataError when it is missing or damaged."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, and a finished stage leaves one. {again(command)}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}). Delete its folder. {again(command)}") from None


def read_cells(runs: list[Run]) -> list[Cell]:
    """The finished cells, each first stage once, KL before the others and then by f, c and codebook, with labels."""
    cells: dict[str, Cell] = {}
    for run in runs:
        record = run.stage("reconstructions")
        if record is not None and record.done:
            facts = read_json(record.folder / "facts.json", record.command)
            cells.setdefault(record.id, Cell(run, record, facts))
    ordered = sorted(
        cells.values(), key=lambda x: (x.regulariser != "KL", x.regulariser, x.f, x.c, x.codes or 0, x.record.id)
    )
    return labelled(ordered)


def labelled(cells: list[Cell]) -> list[Cell]:
    """Labels as short as they can be while no two are equal: KL f=4, then with c, |Z|, the chosen ae, the id."""

    def words(cell: Cell) -> list[str]:
        codes = f"|Z|={cell.codes}" if cell.codes else ""
        return [f"{cell.regulariser} f={cell.f}", f"c={cell.c}", codes, cell.option, cell.record.id[:6]]

    labels = [words(cell)[0] for cell in cells]
    for depth in range(1, 5):
        counts = Counter(labels)
        labels = [
            " ".join(part for part in (label, words(cell)[depth]) if part) if counts[label] > 1 else label
            for label, cell in zip(labels, cells, strict=True)
        ]
    return [replace(cell, label=label) for cell, label in zip(cells, labels, strict=True)]


def regularisers(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.regulariser for cell in cells))
