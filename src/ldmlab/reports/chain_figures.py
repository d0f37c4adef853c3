"""Figures of the diffusion chain: what is lost over what is known (the paper's Fig. 2), and what each step costs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ldmlab.reports.collect import read_json
from ldmlab.reports.figures import Figure, Series
from ldmlab.reports.records import Run, StageRecord

RATE = "bits per pixel and colour"
LOSSES = {"rmse": "RMSE (levels of 255)", "perceptual": "Perceptual distance"}
NOTE = "Of val images: each point is the prediction from one noise level, decoded. Band: 95 % over images."
STEPS = "What a receiver pays from each time of the chain to the next: terms of the variational bound."


def chain_figures(runs: list[Run], colours: Sequence[int] | None = None) -> list[Figure]:
    """Of each run's last snapshot with a chain, a line each: loss over rate, and the terms over time. A shared chain is drawn once.

    colours: of each run, by the number of the palette; None: in turn.
    """
    found: dict[str, tuple[int, Run, StageRecord]] = {}
    for i, run in enumerate(runs):
        record = run.stage("chain")
        if record is not None and record.done:
            found.setdefault(record.id, (i if colours is None else colours[i], run, record))
    chains = [
        (i, run.label if len(runs) > 1 else "", record, read_json(record.folder / "chain.json", record.command))
        for i, run, record in found.values()
    ]
    figures = [_losses(chains, kind) for kind in LOSSES if any(kind in chain["curves"] for *_, chain in chains)]
    return [*figures, _terms(chains)] if chains else []


Chains = list[tuple[int, str, StageRecord, dict[str, Any]]]


def _losses(chains: Chains, kind: str) -> Figure:
    series = []
    for i, name, record, chain in chains:
        rate, loss = chain["curves"]["bits"]["value"], chain["curves"].get(kind)
        if loss is not None:
            band: dict[str, Any] = {"low": loss["low"], "high": loss["high"], "colour": i, "sources": (record.place,)}
            series.append(Series(name, rate, loss["value"], style="points", **band))
    title = f"{LOSSES[kind]} along the chain"
    return Figure(f"chain-{kind}", title, LOSSES[kind], tuple(series), NOTE, from_zero=True, x=RATE)


def _terms(chains: Chains) -> Figure:
    """x is the time that a step starts from, noise to data from right to left."""
    series = []
    for i, name, record, chain in chains:
        rate, times = chain["curves"]["bits"]["value"], [float(t) for t in chain["times"]]
        steps = [after - before for before, after in pairwise(rate)]
        look: dict[str, Any] = {"style": "line", "colour": i, "sources": (record.place,)}
        series.append(Series(name, times[:-1][::-1], steps[::-1], **look))
    positive = all(value > 0 for s in series for value in s.values)
    title = "Bits of each step of the chain"
    return Figure("chain-steps", title, f"{RATE}, a step", tuple(series), STEPS, positive, x="time t (0: least noise)")
