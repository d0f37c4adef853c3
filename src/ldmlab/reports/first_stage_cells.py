"""The cells of a study of first stages: each run's `reconstructions` stage with what lies beside its scores, and what
follows from pairs of them: what a step of f costs, and what the regulariser costs at equal f.

Shape letters: N images, C channels, H W space, S noise levels.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from ldmlab.reports.collect import read_arrays, read_json, read_score
from ldmlab.reports.numbers import KNOWN, Comparison, MetricDeclaration, compare, indistinct
from ldmlab.reports.records import Estimate, Run, StageRecord

BITS = 24  # of a pixel of an 8-bit colour image: facts from before there were others do not say it
COMPARED = ("psnr", "ssim", "perceptual", "rfid", "ris")
EXPECTED = {"psnr": ("falls", "rises", -1.0), "rfid": ("rises", "falls", 1.0)}  # with f, in the paper's Table 8


class ShownImages(NamedTuple):
    """The images that every cell shows, and what became of them; uint8 [N, H, W, 3]."""

    original_NHWC: Any
    reconstruction_NHWC: Any


@dataclass(frozen=True)
class FirstStageCell:
    """One trained first stage. `facts` is its facts.json; `label` tells it from the other cells."""

    run: Run
    compared: StageRecord  # what it is scored by
    facts: dict[str, Any]
    f: int
    c: int
    codes: int | None
    regulariser: str  # KL, VQ, VQ-EMA, FSQ; PCA for a linear first stage, PCA + VQ for one that is quantised
    resolution: int
    option: str  # what was chosen as `ae=…`
    latent_shape: tuple[int, int, int]  # c h w
    label: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.latent_shape)

    @property
    def bits_ratio(self) -> float | None:
        """Bits of the image over bits of the latent; None where the latent has no stated bits."""
        rate = self.compared.scores.get("bits_per_pixel")
        return self.facts.get("pixel_bits", BITS) / rate.value if rate is not None and rate.value > 0 else None

    @property
    def training_seconds(self) -> float | None:
        stage = self.run.stage("autoencoder")
        return None if stage is None else stage.seconds

    @property
    def training_cpu_seconds(self) -> float | None:
        stage = self.run.stage("autoencoder")
        return None if stage is None else stage.cpu_seconds

    @property
    def is_of_originals(self) -> Estimate | None:
        raw = self.facts["is_of_originals"]
        return None if raw is None else read_score(raw, "facts.json: is_of_originals", self.compared.command)

    @cached_property
    def latent(self) -> dict[str, Any]:
        """Arrays of latent.npz (`metrics.reconstruction_pass.Pass.latent`)."""
        return read_arrays(self.compared.folder / "latent.npz", self.compared.command)

    @cached_property
    def codecs(self) -> dict[str, Any]:
        """Points of codecs.json by codec; empty where the store is older than that file."""
        file = self.compared.folder / "codecs.json"
        return read_json(file, self.compared.command) if file.is_file() else {}

    @cached_property
    def shown(self) -> ShownImages:
        arrays = read_arrays(self.compared.folder / "shown.npz", self.compared.command)
        return ShownImages(arrays["original"], arrays["reconstruction"])

    @property
    def psnr_of_samples(self) -> tuple[float, float] | None:
        """(PSNR of decoded posterior samples, of the same images' decoded means) in dB; None without a posterior."""
        if "psnr_of_samples" not in self.latent:
            return None
        return float(self.latent["psnr_of_samples"].mean()), float(self.latent["noised_additive"][0].mean())


def read_cells(runs: list[Run]) -> list[FirstStageCell]:
    """The finished cells, each first stage once, PCA and KL before the others and then by f, c and codebook, with labels."""
    cells: dict[str, FirstStageCell] = {}
    for run in runs:
        record = run.stage("reconstructions")
        if record is not None and record.done and record.id not in cells:
            facts = read_json(record.folder / "facts.json", record.command)
            named = {name: facts[name] for name in ("f", "c", "codes", "resolution")} | {"regulariser": kind_of(facts)}
            option, shape = record.folder.name.rpartition("-")[0], tuple(facts["latent_shape"])
            cells[record.id] = FirstStageCell(run, record, facts, option=option, latent_shape=shape, **named)

    def order(x: FirstStageCell) -> tuple[Any, ...]:
        kinds = ["PCA", "KL"]  # these first
        place = kinds.index(x.regulariser) if x.regulariser in kinds else len(kinds)
        return place, x.regulariser, x.f, x.c, x.codes or 0, x.compared.id

    return labelled(sorted(cells.values(), key=order))


def kind_of(facts: dict[str, Any]) -> str:
    """What the lines of figures and the steps of f are grouped by."""
    name = {"EMAVQ": "VQ-EMA", "NoRegulariser": ""}.get(facts["regulariser"], facts["regulariser"])
    return " + ".join(part for part in ("PCA" if facts.get("linear") else "", name) if part) or "none"


def labelled(cells: list[FirstStageCell]) -> list[FirstStageCell]:
    """Labels as short as they can be while no two are equal: KL f=4, then with c, |Z|, the chosen ae, the id."""

    def words(cell: FirstStageCell) -> list[str]:
        codes = f"|Z|={cell.codes}" if cell.codes else ""
        return [f"{cell.regulariser} f={cell.f}", f"c={cell.c}", codes, cell.option, cell.compared.id[:6]]

    labels = [words(cell)[0] for cell in cells]
    for depth in range(1, 5):
        counts = Counter(labels)
        labels = [
            f"{label} {words(cell)[depth]}".strip() if counts[label] > 1 else label
            for label, cell in zip(labels, cells, strict=True)
        ]
    return [replace(cell, label=label) for cell, label in zip(cells, labels, strict=True)]


def regularisers(cells: list[FirstStageCell]) -> list[str]:
    return list(dict.fromkeys(cell.regulariser for cell in cells))


# ---- pairs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellPair:
    """From `a` to `b`; differences b − a by score name, with the paired interval where both stored replicates."""

    a: FirstStageCell
    b: FirstStageCell
    differences: dict[str, Comparison]

    @property
    def title(self) -> str:
        return f"{self.a.label} → {self.b.label}"

    def sign(self, key: str) -> float:
        """+1 or −1 where the interval leaves out 0, else 0."""
        d = self.differences[key].score
        return 0.0 if d.low is None or d.overlaps(Estimate(0.0)) else 1.0 if d.value > 0 else -1.0


def pair(a: FirstStageCell, b: FirstStageCell) -> CellPair:
    found = {key: compare(a.compared, b.compared, KNOWN[key]) for key in COMPARED}
    return CellPair(a, b, {key: difference for key, difference in found.items() if difference is not None})


def along_f(cells: list[FirstStageCell]) -> list[CellPair]:
    """From each f to the next within each regulariser, all cells of the one with all of the other."""
    pairs = []
    for kind in regularisers(cells):
        own = [cell for cell in cells if cell.regulariser == kind]
        for low, high in pairwise(sorted({cell.f for cell in own})):
            pairs += [pair(a, b) for a in own if a.f == low for b in own if b.f == high]
    return [each for each in pairs if each.differences]


def at_equal_f(cells: list[FirstStageCell]) -> list[CellPair]:
    """From one regulariser to another at the same f."""
    pairs = [pair(a, b) for a, b in combinations(cells, 2) if a.f == b.f and a.regulariser != b.regulariser]
    return sorted((each for each in pairs if each.differences), key=lambda each: each.a.f)


def verdicts(cells: list[FirstStageCell]) -> list[str]:
    """Whether PSNR falls and rFID rises with f, one sentence each regulariser and score; empty for a single f."""
    found = []
    for kind in regularisers(cells):
        steps = [each for each in along_f(cells) if each.a.regulariser == kind]
        for key, (verb, opposite, sign) in EXPECTED.items():
            own = [each for each in steps if key in each.differences]
            groups = {verb: sign, opposite: -sign, "is not distinguishable": 0.0}
            by_verb = {words: [each for each in own if each.sign(key) == s] for words, s in groups.items()}
            if own and len(by_verb[verb]) == len(own):
                span = f"f = {own[0].a.f} … {own[-1].b.f}"
                found.append(f"{kind}: {KNOWN[key].label} {verb} with f at every step, {span}.")
            elif own:
                places = {
                    words: ", ".join(f"{p.a.f} → {p.b.f}" for p in pairs) for words, pairs in by_verb.items() if pairs
                }
                text = "; ".join(f"{words} at f {steps_said}" for words, steps_said in places.items())
                found.append(f"{kind}: {KNOWN[key].label} {text}.")
    return found


def all_indistinct(
    cells: list[FirstStageCell],
) -> list[tuple[MetricDeclaration, list[tuple[FirstStageCell, FirstStageCell]]]]:
    """For each score the pairs of cells, of equal protocol, that are not distinguishable."""
    return indistinct(combinations(cells, 2), [KNOWN[key] for key in COMPARED])
