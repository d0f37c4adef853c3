"""The cells of a study as plain numbers: arms, seeds, and one score of each snapshot with its replicates. Knows no files.

The score is FID, or another that is positive (IS). It is compared on its logarithm: retraining changes it by a share of itself, and a
ratio reads alike at 5 and at 50.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ldmlab.metrics.intervals import FEWEST, Z
from ldmlab.studies.components import Nested

HALF = (0.35, 0.65)  # shares of training that may be called the half of it
SAME = 1e-3  # shares nearer than this are one


TREATMENT = "treatment"  # a fact of an arm: what was done beside the choice of a first stage, where arms differ in it


@dataclass(frozen=True)
class Arm:
    """What is compared. f: downsampling factor; c: latent channels; facts: what else a claim may ask for (`objects`, `TREATMENT`);
    first_stage: the choice of it, "" where nobody knows.
    """

    name: str
    family: str  # pixels, or the regulariser: kl, vq, pca …
    f: int
    c: int
    facts: dict[str, Any] = field(default_factory=dict, hash=False)
    first_stage: str = ""


@dataclass(frozen=True)
class Point:
    """The score after a share of training. replicates: of the bootstrap over images, drawn alike in cells of equal n and seed.

    seconds: of the denoiser's training until there, None where nobody knows. source: where it is kept.
    """

    share: float
    images: int
    value: float
    low: float
    high: float
    replicates: tuple[float, ...] = ()
    seconds: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Cell:
    """One trained and sampled denoiser. trained: whether its first stage is (one in closed form has no seed).

    seconds and flops: of the denoiser's training; first_stage_flops: of training its first stage and encoding its images; samples and
    sampling_seconds: of drawing and decoding images, on the machine that did it; None where nobody knows. speed: images a second
    drawn and decoded, where that was measured without loading. denoiser: what tells it from others.
    """

    arm: Arm
    first_seed: int
    denoiser_seed: int
    sampling_seed: int
    trained: bool
    points: tuple[Point, ...]
    seconds: float | None = None
    flops: float | None = None
    samples: int = 0
    sampling_seconds: float | None = None
    first_stage_flops: float | None = None
    speed: float | None = None
    denoiser: str = ""

    @property
    def images_per_second(self) -> float | None:
        if self.speed is not None:
            return self.speed
        return self.samples / self.sampling_seconds if self.samples and self.sampling_seconds else None

    def at(self, share: float) -> Point | None:
        return next((point for point in self.points if abs(point.share - share) < SAME), None)


@dataclass(frozen=True)
class CellTable:
    """The finished cells of a study. left_out: how many more were scored by another protocol, so that nothing here compares them.
    own_scales: whether each kind of pictures has its own reference and extractor, so that only differences within a kind compare.
    """

    cells: tuple[Cell, ...]
    left_out: int = 0
    own_scales: bool = False

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Pixels, then by family in order of appearance, each by rising f and c."""
        families = list(dict.fromkeys(cell.arm.family for cell in self.cells))
        found = {cell.arm.name: cell.arm for cell in self.cells}.values()
        return tuple(sorted(found, key=lambda arm: (arm.f > 1, families.index(arm.family), arm.f, arm.c)))

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Shares of training at which every cell has a score, rising."""
        if not self.cells:
            return ()
        return tuple(p.share for p in self.cells[0].points if all(cell.at(p.share) for cell in self.cells))

    @property
    def varies_f(self) -> bool:
        return len({arm.f for arm in self.arms}) > 1

    @cached_property
    def curve(self) -> tuple[Arm, ...]:
        """The arms of the U: one family over f with pixels as its f = 1; the family with the most f, KL before VQ and others.
        Of several arms with one f that with the fewest channels.
        """
        families: dict[str, dict[int, Arm]] = {}
        pixels = [arm for arm in self.arms if arm.f == 1]
        for arm in sorted((arm for arm in self.arms if arm.f > 1), key=lambda arm: arm.c):
            families.setdefault(arm.family, {}).setdefault(arm.f, arm)
        order = ("kl", "vq", "pca")
        rank = {name: order.index(name) if name in order else len(order) for name in families}
        best = max(families, key=lambda name: (len(families[name]), -rank[name]), default=None)
        own = sorted(families[best].values(), key=lambda arm: arm.f) if best is not None else []
        return (*pixels[:1], *own)

    def share(self, name: str) -> float | None:
        """`first`, `half` or `last` of `shares`; None where there is no such snapshot."""
        if not self.shares:
            return None
        if name == "half":
            near = [s for s in self.shares[:-1] if HALF[0] <= s <= HALF[1]]
            return min(near, key=lambda s: abs(s - 0.5), default=None)
        return self.shares[0 if name == "first" else -1]

    @cached_property
    def varied_facts(self) -> list[dict[str, Any]]:
        """The facts in which arms differ, one mapping a value, so that `where` gives tables of pictures of one kind; [{}] for none."""
        names = (
            [name for name in self.arms[0].facts if len({arm.facts.get(name) for arm in self.arms}) > 1]
            if self.arms
            else []
        )
        found = {repr([arm.facts.get(n) for n in names]): {n: arm.facts.get(n) for n in names} for arm in self.arms}
        return list(found.values()) or [{}]

    def where(self, facts: dict[str, Any]) -> "CellTable":
        """The cells whose arm has these facts."""
        return replace(
            self, cells=tuple(c for c in self.cells if all(c.arm.facts.get(k) == v for k, v in facts.items()))
        )

    def at(self, share: float) -> Nested:
        """ln of the score of all cells at one of `shares`."""
        return self._nested({share: 1.0})

    def nested(self, at: dict[str, float]) -> Nested | None:
        """ln of the score combined over snapshots: {"last": 1}, or {"first": 1, "last": -1}; None where a snapshot is missing."""
        weights: dict[float, float] = {}
        for name, weight in at.items():
            share = self.share(name)
            if share is None:
                return None
            weights[share] = weights.get(share, 0.0) + weight
        if not self.cells or (len(weights) < len(at)):
            return None
        return self._nested(weights)

    def _nested(self, weights: dict[float, float]) -> Nested:
        cells = self.cells
        chosen = [[(weight, _found(cell, share)) for share, weight in weights.items()] for cell in cells]
        y_N = np.array([sum(w * np.log(point.value) for w, point in each) for each in chosen])
        return Nested(
            tuple(cell.arm.name for cell in cells),
            tuple(str(cell.first_seed) if cell.trained else "closed form" for cell in cells),
            tuple(str(cell.denoiser_seed) for cell in cells),
            tuple(cell.trained for cell in cells),
            y_N,
            _covariance(chosen),
        )


def _found(cell: Cell, share: float) -> Point:
    point = cell.at(share)
    assert point is not None  # of `Table.shares`
    return point


def _covariance(chosen: list[list[tuple[float, Point]]]) -> np.ndarray:
    """Between the cells' responses, over resamples of the images; from the intervals alone, without what cells share, where
    replicates are missing or unequal in number.
    """
    counts = {len(point.replicates) for each in chosen for _, point in each}
    if len(counts) == 1 and counts.pop() >= FEWEST:
        replicates_NR = [sum(w * np.log(np.array(point.replicates)) for w, point in each) for each in chosen]
        return np.atleast_2d(np.cov(np.array(replicates_NR)))
    spread = [[abs(w) * (np.log(p.high) - np.log(max(p.low, 1e-9))) / (2 * Z) for w, p in each] for each in chosen]
    return np.diag([float(np.sum(np.square(each))) for each in spread])
