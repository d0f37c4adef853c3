"""What a study of f says: the U, where its minimum is, the paper's claims judged, variance components, advice.

`ldmlab.studies` computes; here it becomes sentences, tables and one figure of the study's page.
"""

import math
from typing import Any

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.figures import JOINED, Figure, Series
from ldmlab.reports.numbers import KNOWN
from ldmlab.reports.tables import listed
from ldmlab.studies.advice import Advice, Price, advise
from ldmlab.studies.best import best
from ldmlab.studies.cells import TREATMENT, Arm, CellTable
from ldmlab.studies.claims import Verdict, judge
from ldmlab.studies.components import Interval, Nested
from ldmlab.studies.pairs import pairs
from ldmlab.studies.prediction import predict

FEW_SEEDS = (
    "Nothing was trained twice, so no interval says how another training would end: which f is best is undecided. "
    "seeds.denoiser=2 trains each cell twice."
)
COMBINED = "95 % intervals over images and seeds together"
OWN_SCALES = (
    " Each kind of pictures has its own reference and extractor: compare the shapes of the lines, not their heights."
)
VERDICTS = {-1: "lower", 0: "cannot be told apart", 1: "higher"}
HOW = (
    "Nested random effects by the method of moments on ln FID, the variances between seeds pooled over all arms; images by the "
    "bootstrap. A standard deviation of 0.10 is 10 % of a FID."
)
FIRST_STAGES = "One seed of each first stage: the intervals hold for these first stages, and others may differ by more."


def blocks(table: CellTable, study: str) -> tuple[list[doc.Block], list[doc.Section]]:
    """(what stands at the head of the page, sections below it); both empty for a study that does not vary f."""
    if not table.cells:
        return [], []
    head: list[doc.Block] = [doc.Notes([doc.Note("comparison", text) for text in advice_lines(table)], "verdicts")]
    head.append(doc.Figures([figure] if table.varies_f and (figure := u_figure(table)) is not None else []))
    sections = [
        doc.Section("What the paper says of f, judged here", claim_blocks(table, study), "claims"),
        doc.Section("Arms of one f", pair_blocks(table), "pairs"),
        doc.Section("Where the spread comes from", component_blocks(table), "components"),
    ]
    return [block for block in head if block], [section for section in sections if section.blocks]


# ---- advice ---------------------------------------------------------------------------------------------------------


def called(arm: Arm, table: CellTable) -> str:
    """ "f = 4", with the channels or the name where two arms of the curve have this f."""
    same = [other for other in table.arms if other.f == arm.f and other.family == arm.family]
    return f"f = {arm.f}" if len(same) == 1 else f"f = {arm.f} ({arm.name})"


def named(arm: Arm, table: CellTable) -> str:
    """The same, with the family of an arm that is not of the curve's: "PCA f = 4"."""
    families = {each.family for each in table.curve}
    return called(arm, table) if arm.family in families else f"{arm.family.upper()} {called(arm, table)}"


def advice_lines(table: CellTable) -> list[str]:
    """The paragraph for a person who must choose an f, one sentence a line; for the page and the terminal."""
    if not table.varies_f:
        return pair_lines(table)
    if len(table.varied_facts) > 1:
        kinds = [line for facts in table.varied_facts for line in _of_one_kind(table, facts)]
        return [*kinds, *(pair_lines(table) if TREATMENT in table.varied_facts[0] else [])]
    found = advise(table)
    if found is None:
        curve = ", ".join(called(arm, table) for arm in table.curve)
        return [FEW_SEEDS] if len(table.curve) > 1 else [f"One f ({curve}) cannot say which is best."]
    lines = [_choice(found, table)]
    lines += [_deciding(found.take, arm, price, table) for arm, price in found.tied]
    lines += [text for name in ("first", "half") if (text := _minimum(table, name)) is not None]
    if (text := _at_twice(table)) is not None:
        lines.append(text)
    nested = table.nested({"last": 1.0})
    if nested is not None and not nested.df_K[0] and any(cell.trained for cell in table.cells):
        lines.append(FIRST_STAGES)
    if table.left_out:
        lines.append(
            f"{table.left_out} more of this study's cells are scored by another protocol and are not in these verdicts. Choose cells of "
            "one protocol with runs=…."
        )
    return lines


def kind_name(facts: dict[str, Any]) -> str:
    """ "objects = 4", or a treatment's own words."""
    return ", ".join(str(value) if name == TREATMENT else f"{name} = {value}" for name, value in facts.items())


def _of_one_kind(table: CellTable, facts: dict[str, Any]) -> list[str]:
    """The first sentence for the pictures of one kind, or for one treatment."""
    return [f"{kind_name(facts)}: {line[0].lower()}{line[1:]}" for line in advice_lines(table.where(facts))[:1]]


def _choice(found: Advice, table: CellTable) -> str:
    images = next(p.images for p in table.cells[0].points if p.share == table.shares[-1])
    parts = [
        f"For these pictures and this budget ({numbers.count(images)} training images) take {called(found.take, table)}"
    ]
    if found.tied:
        parts.append(f"{listed([called(arm, table) for arm, _ in found.tied])} cannot be told from it")
    if found.ruled_out:
        parts.append(
            f"{listed([called(arm, table) for arm in found.ruled_out])} {'is' if len(found.ruled_out) == 1 else 'are'} ruled out"
        )
    return "; ".join(parts) + f" (FID, {COMBINED})."


def _deciding(take: Arm, other: Arm, price: Price | None, table: CellTable) -> str:
    pair = f"{called(take, table)} from {called(other, table)}"
    if price is None:
        return f"To tell {pair} would take more than 32 times the seeds and images of this study, if their difference stays as it is."
    cost = "" if price.seconds is None else f", about {numbers.seconds(price.seconds)} on this machine"
    return f"About {price.times} times the {price.what} would tell {pair}, if their difference stays as it is{cost}."


def _minimum(table: CellTable, name: str) -> str | None:
    """Where the minimum is at an earlier snapshot; None without that snapshot."""
    share, nested = table.share(name), table.nested({name: 1.0})
    if share is None or nested is None or share == table.shares[-1] or (name == "half" and share == table.shares[0]):
        return None
    found = best(nested, tuple(arm.name for arm in table.curve))
    if found is None:
        return None
    kept = [called(arm, table) for arm in table.curve if arm.name in found.kept]
    lowest = next(arm for arm in table.curve if arm.name == found.lowest)
    return f"After {share:.0%} of training FID is lowest at {called(lowest, table)}; not ruled out: {listed(kept)}."


def _at_twice(table: CellTable) -> str | None:
    """Where the lowest FID would be after twice the images; None where nothing can be said."""
    found = predict(table)
    if found is None:
        return None
    lowest = next(called(arm, table) for arm, _ in found.arms if arm.name == found.best.lowest)
    kept = listed([called(arm, table) for arm, _ in found.arms if arm.name in found.best.kept])
    return (
        f"Prediction for twice the training ({numbers.count(found.images)} images), by a power law through its half and its end: FID is "
        f"lowest at {lowest}; not ruled out: {kept}."
    )


# ---- the U ----------------------------------------------------------------------------------------------------------


def arm_interval(nested: Nested, arm: Arm) -> Interval:
    """Mean ln FID of an arm; the point alone where nothing was trained twice."""
    found = nested.contrast({arm.name: 1.0})
    value = float(nested.weights({arm.name: 1.0}) @ nested.y_N)
    return found if found is not None else Interval(value, value, value, 0.0)


def u_figure(table: CellTable) -> Figure | None:
    """FID over f: the curve at each budget, other families at the end of training."""
    series: list[Series] = []
    last = table.share("last")
    if len(table.varied_facts) > 1 and last is not None:
        for facts in table.varied_facts:
            series.append(_line(table, table.where(facts).curve, last, kind_name(facts), len(series), dashed=False))
        return _panel(series, table)
    for name in ("last", "half", "first"):
        share = table.share(name)
        if share is not None and not any(line.split == f"{share:.0%}" for line in series):
            series.append(_line(table, table.curve, share, f"{share:.0%}", len(series), dashed=bool(series)))
    for family in dict.fromkeys(arm.family for arm in table.arms):
        own = tuple(arm for arm in table.arms if arm.family == family and arm not in table.curve)
        if own and last is not None:
            series.append(_line(table, own, last, family.upper(), len(series), dashed=False))
    return _panel(series, table)


def _panel(series: list[Series], table: CellTable) -> Figure | None:
    last = table.nested({"last": 1.0})
    if not series:
        return None
    xs = sorted({x for s in series for x in s.images})
    several = len(table.shares) > 1
    note = f"Bands: {COMBINED}." if last is not None and last.retrained else "Points alone: nothing was trained twice."
    note += " In per cent: after this share of training." if several else ""
    note += OWN_SCALES if table.own_scales else ""
    return Figure("fid-over-f", "FID of generated images over f", KNOWN["fid"].head, tuple(series), note, True, False,
                  "down-sampling factor f", "log", tuple(xs))  # fmt: skip


def _line(table: CellTable, arms: tuple[Arm, ...], share: float, name: str, colour: int, dashed: bool) -> Series:
    nested = table.at(share)
    points = [(arm_interval(nested, arm), sources(table, arm, share)) for arm in arms]
    return _series([float(arm.f) for arm in arms], points, name, colour, dashed)


def arm_line(table: CellTable, arm: Arm, xs: list[float]) -> Series:
    """The mean of an arm's cells at each of `table.shares`, with its interval, over xs."""
    points = [(arm_interval(table.at(share), arm), sources(table, arm, share)) for share in table.shares]
    return _series(xs, points, named(arm, table), colour_of(arm.f), arm not in table.curve)


def colour_of(f: int) -> int:
    """Of lines that are an f each: the same in every figure, the paper's too."""
    return int(math.log2(f))


def sources(table: CellTable, arm: Arm, share: float) -> str:
    """Where the scores are kept that a point of an arm is the mean of, as `figures.Series` has it."""
    found = (cell.at(share) for cell in table.cells if cell.arm == arm)
    return JOINED.join(point.source for point in found if point is not None and point.source)


def _series(xs: list[float], points: list[tuple[Interval, str]], name: str, colour: int, dashed: bool) -> Series:
    values, low, high = ([math.exp(getattr(each, end)) for each, _ in points] for end in ("value", "low", "high"))
    return Series("", xs, values, low, high, [False] * len(xs), split=name, dashed=dashed, colour=colour, style="points",
                  sources=tuple(source for _, source in points))  # fmt: skip


# ---- claims ---------------------------------------------------------------------------------------------------------


def ratio(interval: Interval | None) -> str:
    """A difference in ln FID as a ratio of FIDs with its interval."""
    if interval is None:
        return "–"
    value, low, high = (f"{math.exp(x):.3g}" for x in interval[:3])
    return f"{value} [{low}, {high}]"


def claim_blocks(table: CellTable, study: str) -> list[doc.Block]:
    verdicts = judge(table, study)
    if not verdicts:
        return []
    rows = [
        [_claim(each), each.judgement, ratio(each.interval), each.why or "–", each.claim.source] for each in verdicts
    ]
    said = f"Ratio: of the FIDs that the claim compares, {COMBINED}; 1 is no difference. A claim is decided where its interval is."
    return [
        doc.Table(["claim", "verdict", "ratio", "why", "source"], doc.entries(rows), left=5),
        doc.Paragraph(said, "small"),
    ]


def _claim(verdict: Verdict) -> str:
    return verdict.claim.text


# ---- arms of one f --------------------------------------------------------------------------------------------------


def pair_lines(table: CellTable) -> list[str]:
    """A sentence for each f that several arms have: which of them differ."""
    by_f: dict[int, list[str]] = {}
    for pair in pairs(table):
        by_f.setdefault(pair.arm.f, []).append(
            f"{pair.arm.name} beside {pair.beside.name}: {VERDICTS[pair.interval.sign]}, {ratio(pair.interval)} ×"
        )
    return [f"At f = {f} (FID, {COMBINED}): {'; '.join(texts)}." for f, texts in by_f.items()]


def pair_blocks(table: CellTable) -> list[doc.Block]:
    found = pairs(table)
    if not found:
        return []
    rows = [
        [
            str(p.arm.f),
            p.arm.name,
            p.beside.name,
            ratio(p.interval),
            VERDICTS[p.interval.sign],
            ("no", "yes")[p.by_seed],
        ]
        for p in found
    ]
    said = (
        f"Ratio: the FID of the first over that of the second after all of the training, means over seeds, {COMBINED}, each interval by "
        "itself: of twenty pairs without a difference one is expected outside 1. Seed by seed: of one first stage cells of equal seeds are "
        "compared, which begin from the same weights and see the same batches; other arms are compared as unpaired means."
    )
    return [
        doc.Table(["f", "arm", "beside", "ratio of FIDs", "verdict", "seed by seed"], doc.entries(rows), left=6),
        doc.Paragraph(said, "small"),
    ]


# ---- variance components --------------------------------------------------------------------------------------------


def component_blocks(table: CellTable) -> list[doc.Block]:
    nested = table.nested({"last": 1.0})
    if nested is None:
        return []
    rows = [
        [c.level, "not varied" if c.variance is None else f"{math.sqrt(c.variance):.3f}", str(c.df)]
        for c in nested.components
    ]
    rows.append(["images of one cell", f"{math.sqrt(nested.image_variance):.3f}", "bootstrap"])
    heads = ["level", "standard deviation of ln FID", "degrees of freedom"]
    return [doc.Table(heads, doc.entries(rows)), doc.Paragraph(HOW, "small")]
