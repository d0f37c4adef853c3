"""The page of a study as the blocks of a W&B report, as plain data: text and tables are the page's own, its figures are panels that
W&B draws from the runs it has. Knows neither wandb nor a network; `report.py … to=wandb dry_run=true` writes it to a file.
"""

from pathlib import Path
from typing import Any

from ldmlab.errors import DataError
from ldmlab.reports import document as doc
from ldmlab.reports import first_stages, study
from ldmlab.reports.collect import read_runs
from ldmlab.reports.compression_cells import table_of
from ldmlab.reports.first_stage_cells import read_cells
from ldmlab.reports.numbers import metrics_of
from ldmlab.reports.records import Run
from ldmlab.reports.study_cells import SEEDS, TRAINED, Study

Block = dict[str, Any]
# Where the configuration of a W&B run has the knobs of a study; other options of training are at their own path
CONFIGURED = {
    "sampler": "ldmlab.choices.sampler", "steps": "sampler.steps", "eta": "sampler.eta", "grid": "sampler.grid",
    "guidance": "sampler.guidance", "guidance_interval": "sampler.guidance_interval",
    "guidance_rescale": "sampler.guidance_rescale", "weights": "eval.weights",
}  # fmt: skip
FILES = ("table.csv", "report.md", "cells.csv", "paper.csv")  # links to them lead nowhere outside the page's folder


def specification(
    folders: list[Path], name: str, missing: list[tuple[str, str]], counted: study.Counted
) -> dict[str, Any]:
    """{"title", "description", "runs", "groupby", "blocks"} of the study `name` in these run folders.

    missing and counted: as of `study.report`. Raises DataError when no cell is finished, or a result is damaged.
    """
    runs = read_runs(folders)
    if all(first_stages.ends_there(folder) for folder in folders):
        if not (cells := read_cells(runs)):
            raise DataError(
                f"study={name}: no first stage is finished yet. Make it: python src/train.py -m sweeps={name}"
            )
        scores = first_stages.score_table(cells, runs)
        page = first_stages.document(cells, runs, scores, name, study.missing_notes(missing, runs), None)
        groupby, panels = ["config.ldmlab.choices.ae"], first_stage_panels(runs)
    else:
        found, compared = study.scored_study(runs, name, counted)
        page = study.document(found, runs, name, study.missing_notes(missing, runs), counted, None, compared[1:])
        groupby, panels = [f"config.{path}" for path in grouping(found)], study_panels(found, runs, name)
    return {
        "title": f"Study {name}",  # the same for good, for W&B makes a report's address of it
        "description": page.title,
        "runs": [run.id for run in runs],
        "groupby": groupby,
        "blocks": blocks(page, panels),
    }


def grouping(found: Study) -> list[str]:
    """Paths of the configuration in which cells differ, but for their seeds: runs alike in these are one line."""
    knobs = [knob for knob in found.knobs if knob not in SEEDS]
    paths = [f"ldmlab.choices.{k}" if k in TRAINED or "/" in k else CONFIGURED.get(k, k) for k in knobs]
    return list(dict.fromkeys(paths)) or ["ldmlab.choices.ldm"]


# ---- text -----------------------------------------------------------------------------------------------------------


def blocks(page: doc.Document, panels: dict[str, list[Block]]) -> list[Block]:
    """The page from top to bottom, each section's figures replaced by the panels that belong there."""
    made: list[Block] = [{"type": "heading", "level": 1, "text": page.title}, {"type": "text", "text": page.lead}]
    said = [note.text for note in page.missing]
    made += [{"type": "markdown", "text": "\n".join(f"- missing: {doc.escape(text)}" for text in said)}] if said else []
    for section in page.sections:
        made += section_blocks(section, panels.get(section.id, []))
    return made


def section_blocks(section: doc.Section, panels: list[Block]) -> list[Block]:
    text = "\n".join(doc.joined([b for b in map(kept, section.blocks) if b is not None], 3)).strip()
    text = text.replace("[table.csv](table.csv) · as text: [report.md](report.md)", "in the store's page of this study")
    for name in FILES:
        text = text.replace(f"[{name}]({name})", name)
    inside: list[Block] = [{"type": "markdown", "text": text}] if text else []
    inside += [{"type": "panels", "panels": panels}] if panels else []
    head = {"type": "heading", "level": 2, "text": section.title, "id": section.id}
    return [*([head] if section.title and inside else []), *inside]


def kept(block: doc.Block) -> Any:
    """The block without what a report draws itself; None where nothing is left."""
    match block:
        case doc.Section():
            inside = [] if block.only_page else [b for b in map(kept, block.blocks) if b is not None]
            return doc.Section(block.title, inside, block.id) if inside else None
        case doc.Columns(left, right):
            inside = [b for b in map(kept, [*left, *right]) if b is not None]
            return doc.Columns(inside, []) if inside else None
        case doc.Paragraph() | doc.Notes() | doc.Code() | doc.FactList() | doc.Table():
            return block
    return None


# ---- panels ---------------------------------------------------------------------------------------------------------


def line(title: str, x: str, y: list[str], log: bool = False) -> Block:
    """Curves of the runs, those of one group as their mean with a band of one standard deviation."""
    return {"type": "line", "title": title, "x": x, "y": y, "mean": True, "spread": "stddev", "log_y": log}


def media(title: str, key: str, rows: str = "run", columns: str = "index") -> Block:
    return {"type": "media", "title": title, "keys": [key], "rows": rows, "columns": columns}


def study_panels(found: Study, runs: list[Run], name: str) -> dict[str, list[Block]]:
    """By section of the study's page."""
    lead, others = found.leading, [metric for metric in found.metrics if metric != found.leading]
    answer = [line(f"{lead.head} over training", "scores/images", [f"scores/{lead.key}"])]
    answer.append({"type": "bar", "title": lead.head, "metrics": [f"scores/{lead.key}"], "spread": "stddev"})
    if table_of([cell.run for cell in found.cells]).varies_f:
        over_f = {"type": "scatter", "x": "config.ldmlab.f", "log_x": True}
        answer.append(over_f | {"title": f"{lead.label} over f", "y": f"summary.scores/{lead.key}"})
        answer.append({"type": "scatter", "title": "FID of samples over FID of reconstructions", "log_x": False,
                       "x": "summary.reconstructions/rfid", "y": f"summary.scores/{lead.key}"})  # fmt: skip
    more = [line(f"{m.head} over training", "scores/images", [f"scores/{m.key}"]) for m in others]
    pictures = [media("Samples: one noise a column, one run a row, by f", "samples/pictures")]
    if any(cell.samples.pictures.conditions_MHWC is not None for cell in found.cells):
        pictures.append(media("Conditions of the samples", "samples/conditions"))
    pictures.append(media("Reconstructions", "reconstructions/pictures", "run", "step"))
    tables = [{"type": "table", "title": "Every score of every snapshot", "key": "tables/scores"}]
    quantities = dict.fromkeys(q for run in runs for r in run.all("denoiser") for q in r.quantities())
    losses = [
        line(f"denoiser {q}", "denoiser/images", [f"denoiser/val/{q}", f"denoiser/train/{q}"])
        for q in quantities
        if q == "loss" or q.startswith("loss_t")
    ]
    return {"answer": answer, "scores": tables, "figures": more, "samples": pictures, "training": losses}


def first_stage_panels(runs: list[Run]) -> dict[str, list[Block]]:
    metrics = metrics_of([run.first_stage for run in runs if run.first_stage is not None])
    keys = [metric.key for metric in metrics]
    answer = [
        {"type": "scatter", "title": metric.head, "x": "config.ldmlab.f", "y": f"summary.reconstructions/{metric.key}", "log_x": True}
        for metric in metrics
        if metric.key in ("psnr", "rfid", "ssim", "perceptual")
    ]  # fmt: skip
    bars: list[Block] = [
        {"type": "bar", "title": m.head, "metrics": [f"reconstructions/{m.key}"], "spread": "stddev"}
        for m in metrics[:4]
    ]
    curves = [line(f"autoencoder {q}", "autoencoder/images", [f"autoencoder/{split}"]) for q, split in
              (("PSNR of validation (dB)", "val/psnr"), ("loss", "train/loss"))]  # fmt: skip
    pictures = [media("Reconstructions", "reconstructions/pictures", "run", "step")]
    scores: list[Block] = [*bars, {"type": "table", "title": "Every score", "key": "tables/scores"}] if keys else []
    return {"answer": answer, "scores": scores, "reconstructions": pictures, "training": curves}
