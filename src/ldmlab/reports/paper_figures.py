"""The paper's figures 6, 7 and 17 as digitised (`paper_figures.yaml`), drawn like ours and beside them."""

import math
from functools import cache
from pathlib import Path
from typing import Any

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.compression import arm_interval, colour_of
from ldmlab.reports.figures import Figure, Series, round_ticks
from ldmlab.studies.cells import CellTable

FILE = Path(__file__).parent / "paper_figures.yaml"


@cache
def paper() -> dict[str, Any]:
    """The facts as the repository keeps them."""
    import yaml

    raw: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return raw


def _note(facts: dict[str, Any]) -> str:
    return f"{facts['source']}, {facts['tolerance']}. Not comparable in size: compare shapes."


def _series(f: int, xs: list[float], ys: list[float]) -> Series:
    return Series("", xs, ys, split=f"f = {f}", colour=colour_of(f), style="points")


def over_training(key: str) -> list[Figure]:
    """Fig. 6 and 17: `fid` or `is` over steps, and over V100 days."""
    facts, days = paper()["fig_6"], paper()["fig_17"]
    name = {"fid": "FID", "is": "IS"}[key]
    found = []
    for figure, source, x_of in (
        ("fig6", facts, lambda f, step: step),
        ("fig17", days, lambda f, step: step * days["v100_days_per_million_steps"][f]),
    ):
        series = [
            _series(f, [x_of(f, step) for step in facts["step_millions"]], list(map(float, values)))
            for f, values in facts[key].items()
        ]
        x = "million training steps" if figure == "fig6" else "V100 days"
        found.append(Figure(f"paper-{figure}-{key}", f"The paper, {name}", name, tuple(series), _note(source),
                            key == "fid", x=x))  # fmt: skip
    return found


def over_speed() -> list[Figure]:
    """Fig. 7: FID over samples a second, ImageNet and CelebA-HQ."""
    facts, found = paper()["fig_7"], []
    for name, title in (("imagenet", "ImageNet"), ("celeba_hq", "CelebA-HQ")):
        series = []
        for f, points in facts[name].items():
            shown = sorted((float(x), math.exp(y)) for x, y in (p for p in points if p is not None))
            series.append(_series(f, [x for x, _ in shown], [y for _, y in shown]))
        xs = [x for s in series for x in s.images]
        found.append(Figure(f"paper-fig7-{name.replace('_', '-')}", f"The paper, {title}", "FID", tuple(series),
                            f"From right to left 10, 20, 50, 100, 200 DDIM steps. {_note(facts)}", True, x="samples a second, one A100",
                            span="log", ticks=round_ticks(min(xs), max(xs))))  # fmt: skip
    return found


def blocks(table: CellTable) -> list[doc.Block]:
    """FID over f in the paper and here, early and at the end, each as a multiple of its column's lowest."""
    figure, facts = paper()["fig_6"], table.curve
    ours = {name: table.nested({name: 1.0}) for name in ("first", "last")}
    if len(facts) < 2 or ours["last"] is None:
        return []
    early, late = figure["early"], figure["late"]
    columns: list[dict[int, float]] = [
        {f: each[early] for f, each in figure["fid"].items()}, {f: each[late] for f, each in figure["fid"].items()},
        *({arm.f: math.exp(arm_interval(n, arm).value) for arm in facts} if n is not None else {} for n in ours.values()),
    ]  # fmt: skip
    lowest = [min(column.values(), default=1.0) for column in columns]
    rows = []
    for f in sorted({f for column in columns for f in column}):
        texts = [
            f"{_said(column[f])} ({column[f] / low:.2f} ×)" if f in column else "–"
            for column, low in zip(columns, lowest, strict=True)
        ]
        rows.append([str(f), *texts])
    steps = figure["step_millions"]
    heads = ["f", f"paper, {steps[early]:g} M steps", f"paper, {steps[late]:g} M steps", "here, first", "here, last"]
    why = " ".join(str(figure["why_not_comparable"]).split())
    return [
        doc.Table(heads, doc.entries(rows)),
        doc.Paragraph(
            f"{figure['source']}, {figure['tolerance']}. In brackets: over the column's lowest. {why}", "small"
        ),
    ]


def _said(fid: float) -> str:
    """As many digits as were read off the paper's figure, at most three."""
    return f"{fid:.3g}" if fid < 1000 else numbers.plain(fid)
