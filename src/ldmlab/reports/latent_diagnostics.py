"""Diagnostics of latents (the stage `diagnostics`) across runs: read, set side by side, written as CSV."""

from typing import Any

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.collect import read_json, read_score
from ldmlab.reports.first_stage_cells import FirstStageCell
from ldmlab.reports.records import Estimate, Run

HEADS = {
    "velocity": "velocity unexplained ↓", "high_frequency": "high frequencies ↓", "smoothness": "smoothness ↑",
    "neighbours": "neighbours of its label ↑", "noise_psnr": "PSNR under noise (dB) ↑",
}  # fmt: skip
KINDS = {"latent": "", "pca": "principal components", "white": "white noise"}
NOTE = (
    "Arrows: what is said to make a latent easier to denoise; whether it does here is for a study of denoisers to say. Principal "
    "components: of the same f and c. Neighbours of white noise: chance. Brackets: 95 % over images."
)


def read_diagnostics(run: Run) -> dict[str, Any]:
    """diagnostics.json of a run with scores as estimates, {"scores": {"latent": {name: Estimate}, …}, "sigma", "chance", …}; {}
    without the stage.
    """
    record = run.stage("diagnostics")
    if record is None or not record.done:
        return {}
    file = record.folder / "diagnostics.json"
    raw = read_json(file, record.command)
    scores = {
        kind: {name: read_score(value, f"{file}: {kind}.{name}", record.command) for name, value in of.items()}
        for kind, of in raw["scores"].items()
    }
    if raw["chance"] is not None:
        scores["white"]["neighbours"] = Estimate(float(raw["chance"]))
    return raw | {"scores": scores, "place": record.place}


def of_cells(cells: list[FirstStageCell], runs: list[Run]) -> list[tuple[FirstStageCell, dict[str, Any]]]:
    """The cells whose latent some run has diagnosed."""
    by_latent: dict[str, dict[str, Any]] = {}
    for run in runs:
        record, found = run.stage("reconstructions"), read_diagnostics(run)
        if record is not None and found:
            by_latent.setdefault(record.id, found)
    return [(cell, by_latent[cell.compared.id]) for cell in cells if cell.compared.id in by_latent]


def section(cells: list[FirstStageCell], runs: list[Run]) -> doc.Section:
    """A row a latent, below it those of the trivial latents of its shape."""
    found, rows = of_cells(cells, runs), list[list[str]]()
    names = [name for name in HEADS if any(name in each["scores"]["latent"] for _, each in found)]
    for cell, each in found:
        for kind, scores in each["scores"].items():
            label = f"– {KINDS[kind]}" if KINDS[kind] else cell.label
            rows.append([label, *(numbers.plain_said(scores.get(name)) for name in names)])
    if not rows:
        return doc.Section("Diagnostics of the latents", [], "diagnostics")
    sigmas = sorted({each["sigma"] for _, each in found})
    note = f"{NOTE} Noise: {' and '.join(f'{sigma:g}' for sigma in sigmas)} standard deviations of the latent."
    table = doc.Table(["first stage", *(HEADS[name] for name in names)], doc.entries(rows))
    return doc.Section("Diagnostics of the latents", [table, doc.Paragraph(note, "small")], "diagnostics")


def csv_records(cells: list[FirstStageCell], runs: list[Run]) -> list[dict[str, Any]]:
    """One line a latent and diagnostic, full precision."""
    return [
        {
            "cell": cell.label, "f": cell.f, "c": cell.c, "latent": kind, "diagnostic": name, "value": score.value,
            "low": score.low, "high": score.high, "sigma": each["sigma"], "source": each["place"],
        }
        for cell, each in of_cells(cells, runs) for kind, scores in each["scores"].items() for name, score in scores.items()
    ]  # fmt: skip
