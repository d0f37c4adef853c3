"""What the paper claims, judged by a study's cells: supported, contradicted or undecided here, with the interval that decided.

`claims.yaml` has a claim a line. `compare` is a combination of the arms' mean ln FID:

    of, than   the mean of some arms less the mean of others; arms are chosen by `f` and `family`
    slope      ln FID against log2 f, the least-squares slope over the arms chosen
    best       no combination: whether the set of f that cannot be ruled out as the best lies within a list

`at` combines snapshots (`first`, `half`, `last` of training), `between` two values of a fact of the data (the first less the
second). `expect`: `more` or `less` (the interval leaves out zero on that side), or a margin in ln FID within which the whole
interval lies. `faster`: the claim is about images a second, of arms whose FID is at most by the margin higher.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ldmlab.studies.best import best
from ldmlab.studies.cells import Arm, CellTable
from ldmlab.studies.components import Interval

CLAIMS = Path(__file__).parent / "claims.yaml"
Judgement = Literal["supported", "contradicted", "undecided here"]
UNDECIDED: Judgement = "undecided here"


@dataclass(frozen=True)
class Claim:
    """One claim as the file has it."""

    name: str
    text: str
    source: str
    studies: tuple[str, ...]
    compare: dict[str, Any]
    expect: str | float
    at: dict[str, float]
    between: dict[str, list[Any]]
    faster: bool = False


class Verdict(NamedTuple):
    """interval: of the difference in ln FID that decided, None where none could be made. why: one phrase."""

    claim: Claim
    judgement: Judgement
    interval: Interval | None
    why: str


class Missing(Exception):
    """An arm, a snapshot or a second seed that a claim needs is not there."""


@cache
def claims() -> tuple[Claim, ...]:
    """Those of the repository's file, in its order."""
    import yaml

    raw = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))["claims"]
    return tuple(
        Claim(
            each["name"], each["text"], each["source"], tuple(each["studies"]), each["compare"], each["expect"],
            each.get("at", {"last": 1.0}), each.get("between", {}), each.get("faster", False),
        )
        for each in raw
    )  # fmt: skip


def judge(table: CellTable, study: str) -> list[Verdict]:
    """Every claim that this study speaks to."""
    return [_judged(claim, table) for claim in claims() if study in claim.studies]


def _judged(claim: Claim, table: CellTable) -> Verdict:
    try:
        if "best" in claim.compare:
            return _within(claim, table)
        interval = _interval(claim, table)
    except Missing as missing:
        return Verdict(claim, UNDECIDED, None, str(missing))
    if claim.faster:
        return _faster(claim, table, interval)
    return Verdict(claim, _decided(interval, claim.expect), interval, _compared(claim, table))


def _decided(interval: Interval, expect: str | float) -> Judgement:
    if isinstance(expect, str):
        wanted = 1 if expect == "more" else -1
        return "supported" if interval.sign == wanted else "contradicted" if interval.sign == -wanted else UNDECIDED
    if -expect <= interval.low and interval.high <= expect:
        return "supported"
    return "contradicted" if interval.low > expect or interval.high < -expect else UNDECIDED


def _interval(claim: Claim, table: CellTable) -> Interval:
    """The claim's combination of cells; Missing where it cannot be made."""
    nested = table.nested(claim.at)
    if nested is None:
        raise Missing(f"the cells are not scored at {' and '.join(claim.at)} of training")
    weights: dict[str, float] = {}
    for sign, facts in _sides(claim):
        for name, weight in _weights(claim.compare, table.where(facts)).items():
            weights[name] = weights.get(name, 0.0) + sign * weight
    found = nested.contrast(weights)
    if found is None:
        raise Missing("one seed alone: nothing was trained twice")
    return found


def _sides(claim: Claim) -> list[tuple[float, dict[str, Any]]]:
    if not claim.between:
        return [(1.0, {})]
    ((fact, (one, two)),) = claim.between.items()
    return [(1.0, {fact: one}), (-1.0, {fact: two})]


def _weights(compare: dict[str, Any], table: CellTable) -> dict[str, float]:
    """Weight of each arm's mean. Raises Missing for arms that the study does not have."""
    if "slope" in compare:
        arms = chosen(table, compare["slope"])
        if len({arm.f for arm in arms}) < 3:
            raise Missing("fewer than three f with finished cells")
        x = np.log2([arm.f for arm in arms])
        return dict(zip([arm.name for arm in arms], (x - x.mean()) / ((x - x.mean()) ** 2).sum(), strict=True))
    of, than = chosen(table, compare["of"]), chosen(table, compare["than"])
    if compare.get("same_f"):
        shared = {arm.f for arm in of} & {arm.f for arm in than}
        of, than = ([arm for arm in side if arm.f in shared] for side in (of, than))
    for side, wanted in ((of, compare["of"]), (than, compare["than"])):
        if not side:
            raise Missing(f"no finished cell with {_said(wanted)}")
    return {arm.name: 1 / len(of) for arm in of} | {arm.name: -1 / len(than) for arm in than}


def _compared(claim: Claim, table: CellTable) -> str:
    """Which of the f that the claim names the study has."""
    sides = [chosen(table, claim.compare[side]) for side in ("of", "than") if side in claim.compare]
    if not sides or claim.compare.get("same_f"):
        return ""
    return " against ".join(f"f = {', '.join(str(arm.f) for arm in side)}" for side in sides)


def chosen(table: CellTable, wanted: dict[str, Any]) -> list[Arm]:
    """Arms by `family` (the curve over f without one) and `f`: a list, of which any may be missing, or `largest`."""
    arms = [arm for arm in table.arms if arm.family == wanted["family"]] if "family" in wanted else list(table.curve)
    if wanted.get("f") == "largest":
        return [arm for arm in arms if arm.f == max(other.f for other in arms) and arm.f >= 16]
    return [arm for arm in arms if "f" not in wanted or arm.f in wanted["f"]]


def _said(wanted: dict[str, Any]) -> str:
    f = wanted.get("f")
    texts = ["f = 16 or more" if f == "largest" else f"f = {' or '.join(map(str, f))}"] if f else []
    return " and ".join([*texts, *([f"a {wanted['family']} first stage"] if "family" in wanted else [])])


def _within(claim: Claim, table: CellTable) -> Verdict:
    nested, curve = table.nested(claim.at), table.curve
    found = best(nested, tuple(arm.name for arm in curve)) if nested is not None else None
    if found is None:
        return Verdict(claim, UNDECIDED, None, "one seed alone: nothing was trained twice" if nested else "no scores")
    kept = [arm.f for arm in curve if arm.name in found.kept]
    inside = [f in claim.compare["best"] for f in kept]
    tried = [arm.f in claim.compare["best"] for arm in curve]
    why = f"not ruled out as the best: f = {', '.join(map(str, kept))}"
    if all(tried) or not any(tried):
        return Verdict(claim, UNDECIDED, None, f"the study has f = {', '.join(str(arm.f) for arm in curve)} alone")
    judgement: Judgement = "supported" if all(inside) else UNDECIDED if any(inside) else "contradicted"
    return Verdict(claim, judgement, None, why)


def _faster(claim: Claim, table: CellTable, interval: Interval) -> Verdict:
    """Where `of` has no higher FID, to within the margin: whether it draws more images a second, as this machine measured."""
    speed = []
    for side in ("of", "than"):
        arms = chosen(table, claim.compare[side])
        speed.append([cell.images_per_second for cell in table.cells if cell.arm in arms and cell.images_per_second])
    if not all(speed):
        return Verdict(claim, UNDECIDED, interval, "the times of sampling are not known")
    ratio = float(np.exp(np.mean(np.log(speed[0])) - np.mean(np.log(speed[1]))))
    why = f"{ratio:.3g} times the images a second"
    if interval.high > float(claim.expect):
        return Verdict(claim, UNDECIDED, interval, f"{why}, but its FID is not shown to be no higher")
    return Verdict(claim, "supported" if ratio > 1 else "contradicted", interval, why)
