"""Pairs of first stages: what one step of f costs, what the regulariser costs at equal f, and who cannot be told apart.

Differences are paired over the same images (`tables.paired`); cells of unequal protocol are not compared.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise

from ldmlab.reports.cells import Cell, regularisers
from ldmlab.reports.collect import Score
from ldmlab.reports.tables import FIRST_STAGE_METRICS, Metric, differences, distinguishable, paired

COMPARED = ("psnr", "ssim", "perceptual", "rfid", "ris")
EXPECTED = {"psnr": ("falls", "rises", -1.0), "rfid": ("rises", "falls", 1.0)}  # with f, in the paper's Table 8


@dataclass(frozen=True)
class Pair:
    """From `a` to `b`; differences b − a by score name, with the paired interval where both stored replicates."""

    a: Cell
    b: Cell
    differences: dict[str, Score]

    @property
    def title(self) -> str:
        return f"{self.a.label} → {self.b.label}"

    def sign(self, key: str) -> float:
        """+1 or −1 where the interval leaves out 0, else 0."""
        d = self.differences[key]
        return 0.0 if d.low is None or d.overlaps(Score(0.0)) else 1.0 if d.value > 0 else -1.0


def compare(a: Cell, b: Cell) -> Pair | None:
    """None when the two were scored under unequal protocols."""
    if differences(a.record.card, b.record.card):
        return None
    found = {}
    for key in COMPARED:
        one, other = a.record.scores.get(key), b.record.scores.get(key)
        if one is not None and other is not None:
            found[key] = paired(one, other) or Score(other.value - one.value)
    return Pair(a, b, found)


def along_f(cells: list[Cell]) -> list[Pair]:
    """From each f to the next within each regulariser, all cells of the one with all of the other."""
    pairs = []
    for kind in regularisers(cells):
        own = [cell for cell in cells if cell.regulariser == kind]
        factors = sorted({cell.f for cell in own})
        for low, high in pairwise(factors):
            pairs += [compare(a, b) for a in own if a.f == low for b in own if b.f == high]
    return [pair for pair in pairs if pair is not None]


def at_equal_f(cells: list[Cell]) -> list[Pair]:
    """From one regulariser to another at the same f."""
    pairs = [compare(a, b) for a, b in combinations(cells, 2) if a.f == b.f and a.regulariser != b.regulariser]
    return sorted((pair for pair in pairs if pair is not None), key=lambda pair: pair.a.f)


def metrics_of(pairs: list[Pair]) -> list[Metric]:
    return [m for m in FIRST_STAGE_METRICS if any(m.key in pair.differences for pair in pairs)]


def verdicts(cells: list[Cell]) -> list[str]:
    """Whether PSNR falls and rFID rises with f, one sentence each regulariser and score; empty for a single f."""
    found = []
    for kind in regularisers(cells):
        steps = [pair for pair in along_f(cells) if pair.a.regulariser == kind]
        for key, (verb, opposite, sign) in EXPECTED.items():
            own = [pair for pair in steps if key in pair.differences]
            if not own:
                continue
            label = next(m.label for m in FIRST_STAGE_METRICS if m.key == key)
            wrong = [pair for pair in own if pair.sign(key) == -sign]
            open_ = [pair for pair in own if pair.sign(key) == 0]
            span = f"f = {own[0].a.f} … {own[-1].b.f}"
            right = [pair for pair in own if pair.sign(key) == sign]
            groups = [(verb, right), (opposite, wrong), ("cannot be told apart", open_)]
            if len(right) == len(own):
                found.append(f"{kind}: {label} {verb} with f at every step, {span}.")
            else:
                said = [f"{words} at f {', '.join(_step(p) for p in steps)}" for words, steps in groups if steps]
                found.append(f"{kind}: {label} {'; '.join(said)}.")
    return found


def _step(pair: Pair) -> str:
    return f"{pair.a.f} → {pair.b.f}"


def indistinct(cells: list[Cell]) -> list[tuple[Metric, list[tuple[Cell, Cell]]]]:
    """For each score the pairs of cells, of equal protocol, whose paired interval holds 0."""
    found = []
    for metric in FIRST_STAGE_METRICS:
        if metric.key in COMPARED:
            pairs = [
                (a, b)
                for a, b in combinations(cells, 2)
                if metric.key in a.record.scores and metric.key in b.record.scores
                if not differences(a.record.card, b.record.card)
                if not distinguishable(a.record.scores[metric.key], b.record.scores[metric.key])
            ]
            if pairs:
                found.append((metric, pairs))
    return found
