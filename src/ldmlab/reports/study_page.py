"""The page of a study of generated images: one denoiser asked in many ways, or many denoisers asked in one.

What varies among the runs decides its shape (`study_cells`): scores along an axis, or cell by cell. Writes `index.html`,
`report.md`, `table.csv` (every cell in full precision) and `figures/`, like `page.report`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ldmlab.errors import DataError
from ldmlab.reports import page, study_figures, study_pictures, study_tables, tables
from ldmlab.reports.collect import StageRecord, flatten, read_runs, varied
from ldmlab.reports.figures import Figure, files
from ldmlab.reports.study_cells import Cell, Study, read_study, words
from ldmlab.reports.study_figures import trained_label
from ldmlab.reports.study_pictures import Rows
from ldmlab.reports.tables import Table
from ldmlab.reports.text import machine_text, markdown_table, millions

NOT_PROTOCOL = ("snapshot_images",)
LOSSES = "Losses are weighted as they were trained on: cells of unequal objectives share no scale."


class Work(NamedTuple):
    """What a denoiser is and costs: parameters, and operations of training on one image (three forward passes, multiply and
    add as two)."""

    parameters: int
    flops: float


class Counted(NamedTuple):
    """By denoiser id; `refused` holds why one could not be counted."""

    work: Mapping[str, Work]
    refused: Mapping[str, str]


NAMES = {
    "sampler": "sampler", "steps": "number of steps", "guidance": "guidance scale", "guidance_interval": "interval of guidance",
    "ldm": "network", "objective": "objective", "ae": "first stage", "cond": "condition", "data": "data",
}  # fmt: skip


def title_of(study: Study) -> str:
    """ "Samplers over network evaluations on shapes, 32 px", "Objectives on …"."""
    data = sorted({str(cell.run.choice("data") or cell.run.title.split(" · ")[0]) for cell in study.cells})
    sizes = sorted({int(cell.scores.card["resolution"]) for cell in study.cells if "resolution" in cell.scores.card})
    where = ", ".join(data) + (f", {'/'.join(map(str, sizes))} px" if sizes else "")
    if study.axis is not None and study.axis.knob == "guidance":
        return f"Guidance on {where}"
    knobs = [knob for knob in study.knobs if study.axis is None or knob != study.axis.knob]
    names = [f"{NAMES[knob]}s" if knob in NAMES and knob != "data" else knob for knob in knobs]
    what = " and ".join(names) or "samples"
    along = f" over {study.axis.title.removesuffix(' an image')}" if study.axis is not None else ""
    return f"{what[0].upper()}{what[1:]}{along} on {where}"


def question(study: Study) -> str:
    """What varies and what does not, in a sentence."""
    one = len(study.denoisers) == 1
    who = "One trained denoiser" if one else f"{len(study.denoisers)} denoisers"
    vary = [NAMES.get(knob, knob) for knob in study.knobs]
    listed = " and ".join([", ".join(vary[:-1]), vary[-1]] if len(vary) > 1 else vary)
    return f"{who}; {listed or 'nothing'} {'vary' if len(vary) > 1 else 'varies'}, all else is equal."


def shared(study: Study) -> list[StageRecord]:
    """Stages that all cells stand on."""
    first = study.cells[0].run
    everywhere = [{stage.id for stage in cell.run.stages} for cell in study.cells]
    return [
        s
        for s in first.stages
        if s.stage != "reconstructions" and all(s.id in ids for ids in everywhere) and s.stage != "data"
    ]


def protocol(study: Study) -> tuple[list[tuple[str, str]], list[str]]:
    """(facts of the cards that all cells share, names of the fields that vary)."""
    cards = [flatten(cell.scores.card) for cell in study.cells]
    names = [name for name in dict.fromkeys(n for card in cards for n in card) if name not in NOT_PROTOCOL]
    vary = [n for n in names if any(card.get(n) != cards[0].get(n) for card in cards)]
    return page.facts({n: cards[0][n] for n in names if n not in vary and cards[0][n] is not None}), vary


def identity_rows(study: Study, counted: Counted) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): what each denoiser is, what its training cost; with the validation loss at its end."""
    heads = [
        "denoiser", "what", "parameters", "GFLOP an image", "training images", "batch", "learning rate", "training time",
        "images/s",
    ]  # fmt: skip
    rows = []
    for cell in study.denoisers:
        stage = cell.denoiser
        assert stage is not None  # study.denoisers have one
        work, fit = counted.work.get(stage.id), cell.fit
        rates = stage.curve("images_per_second", "train").values
        images = max((row["images"] for row in stage.rows), default=None)
        rows.append(
            [
                trained_label(cell, study), stage.what.split(" · ")[0].split(" ")[0], "–" if work is None else millions(work.parameters),
                "–" if work is None else f"{work.flops / 1e9:.3g}", "–" if images is None else tables.count(images),
                str(fit.get("batch_size", "–")), f"{fit['lr']:g}" if "lr" in fit else "–", page.seconds(stage.seconds),
                page.rate(median(rates)) if rates else "–",
            ]
        )  # fmt: skip
    return heads, rows


def notes(study: Study, counted: Counted) -> list[str]:
    """What a reader must know of the training beside its numbers."""
    found = [f"Operations of denoiser {id_} are not counted: {why}" for id_, why in counted.refused.items()]
    images = {max((row["images"] for row in c.denoiser.rows), default=0) for c in study.denoisers if c.denoiser}
    found += (
        ["Training images differ among the cells: they are not compared at equal images."] if len(images) > 1 else []
    )
    flops = [w.flops for w in counted.work.values()]
    if len(flops) > 1 and max(flops) / min(flops) > 1.001:
        found.append(f"Operations an image differ by up to {max(flops) / min(flops) - 1:.1%}.")
    return [*found, *page.alarms([cell.run for cell in study.denoisers])]


def table_rows(study: Study, table: Table) -> tuple[list[str], list[list[str]]]:
    """(heads, rows in Markdown) of the scores: a column a knob, `value [low, high]`, bold and ≈ as marked."""
    knobs, by_id = columns(study), {cell.scores.id: cell for cell in study.cells}
    rows = []
    for row in table.rows:
        cell = by_id.get(row.source.id) if row.source is not None else None
        first = knob_texts(study, cell) if cell else [row.label, *[""] * (len(knobs) - 1)]
        rows.append([*map(tables.escape, first), *map(entry, row.cells)])
    return [*knobs, *(metric.head for metric in table.metrics)], rows


def entry(cell: tables.Cell) -> str:
    text = tables.escape(" ".join(part for part in (cell.text, cell.interval) if part))
    text = f"**{text}**" if cell.best else f"≈ {text}" if cell.tied else text
    return f"{text} ({cell.note})" if cell.note else text


def columns(study: Study) -> list[str]:
    """Heads of the columns that say which cell a row is."""
    if study.axis is None:
        return ["cell"]
    line = [k for k in study.knobs if k != study.axis.knob]
    return [*(["line"] if len(line) != 1 else [line[0].rpartition(".")[2].replace("_", " ")]), study.axis.short][
        0 if line else 1 :
    ]


def knob_texts(study: Study, cell: Cell) -> list[str]:
    if study.axis is None:
        return [cell.label]
    others = tuple(k for k in study.knobs if k != study.axis.knob)
    place = f"{cell.at(study.axis):g}"
    if not others:
        return [place]
    shared_by = [line for line in study.lines if cell in line.cells]
    return ["all" if len(shared_by) > 1 else words(cell, others, others) or "–", place]


def markdown(
    title: str,
    name: str,
    study: Study,
    scores: Table,
    counted: Counted,
    missing: list[tuple[str, str]],
    drawn: list[Figure],
    losses: list[Figure],
    shown: list[Rows],
) -> str:
    lines = [f"# {tables.escape(title)}", "", tables.escape(question(study)), ""]
    lines += [f"- {tables.escape(sentence)}" for sentence in study_tables.verdicts(study)]
    lines += [f"- missing: `{said}`, {tables.escape(why)}" for said, why in missing]
    lines += ["", *(f"![{tables.escape(f.alt)}](figures/{f.name}.svg)\n" for f in drawn)]
    lines += ["## Scores", "", *markdown_table(*table_rows(study, scores), left=len(columns(study)), ready=True), ""]
    lines += [
        f"- ({mark}) {tables.escape(text)}" if mark else f"- {tables.escape(text)}" for mark, text in scores.notes
    ]
    lines += [f"- {tables.escape(text)}" for text in study_tables.ties(study)]
    heads, rows = study_tables.difference_rows(study)
    if rows:
        lines += ["", f"## Less {tables.escape(study_tables.baseline(study).label)}", "", *markdown_table(heads, rows)]
        lines += ["", "Brackets: paired 95 % interval of the difference."]
    lines += ["", "## What each one is" if len(study.denoisers) > 1 else "## The denoiser", ""]
    lines += [*markdown_table(*identity_rows(study, counted), left=2), "", OPERATIONS, ""]
    lines += [f"- {tables.escape(text)}" for text in notes(study, counted)]
    lines += [f"- all cells: {tables.escape(s.stage)} `{s.place}`, {tables.escape(s.what)}" for s in shared(study)]
    lines += [f"- {tables.escape(machine_text([cell.run for cell in study.cells]))}"]
    if losses:
        lines += [
            "",
            "## Loss",
            "",
            LOSSES,
            "",
            *(f"![{tables.escape(f.alt)}](figures/{f.name}.svg)\n" for f in losses),
        ]
    if shown:
        lines += ["", "## Samples", "", tables.escape(study_pictures.columns_said(study, shown)), ""]
        for each in shown:
            lines += [*([f"{tables.escape(each.title)}:", ""] if each.title else [])]
            lines += [f"![samples{' of ' + each.title if each.title else ''}](figures/{each.name}.png)", ""]
    facts, vary = protocol(study)
    lines += [
        "",
        "## Protocol",
        "",
        f"Varies: {tables.escape(', '.join(vary)) or 'nothing'}. The same for all cells:",
        "",
    ]
    lines += [f"- {tables.escape(field)}: {tables.escape(text)}" for field, text in facts]
    lines += ["", "## Commands", "", *(f"    {' '.join(cell.run.command.split())}" for cell in study.cells), ""]
    lines += [f"    python src/report.py study={name}"]
    return "\n".join(lines) + "\n"


OPERATIONS = (
    "GFLOP an image: of training, three forward passes, multiply and add counted as two. Images/s and times are "
    "measurements of the machine."
)


def report(
    run_folders: list[Path],
    out: Path,
    name: str,
    missing: list[tuple[str, str]],
    counted: Counted,
    title: str | None = None,
) -> Path:
    """Writes the report of a study of generated images to the folder `out`, replacing an earlier one file by file.

    run_folders: folders that hold a run.json. name: the study's, as in study=… missing: (words, why) of cells that failed.
    Returns the path of index.html. Raises DataError when no cell is scored, or naming the file, when a finished stage's
    result is missing or damaged; nothing is written then.
    """
    runs = read_runs([Path(folder) for folder in run_folders])
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a report needs a folder to write to.")
    study = read_study(runs)
    if not study.cells:
        raise DataError(f"study={name}: no samples are scored yet. Make them: python src/train.py -m sweeps={name}")
    heading = title or title_of(study)
    scores = study_tables.score_table(study, runs)
    drawn, losses = study_figures.score_figures(study), study_figures.loss_figures(study)
    shown = study_pictures.side_by_side(study)
    contents = {file: data for figure in [*drawn, *losses] for file, data in files(figure).items()}
    contents |= {f"figures/{each.name}.png": each.sheet for each in shown}
    contents["table.csv"] = study_tables.write_csv(study).encode()
    contents["report.md"] = markdown(
        heading, name, study, runs, scores, counted, missing, drawn, losses, shown
    ).encode()
    environment = page.environment()
    by_id = {cell.scores.id: knob_texts(study, cell) for cell in study.cells}
    contents["index.html"] = (
        environment.get_template("study.html.j2")
        .render(
            title=heading,
            name=name,
            question=question(study),
            cells=study.cells,
            verdicts=study_tables.verdicts(study),
            missing=missing,
            unfinished=[(run, record) for run in runs for record in run.unfinished],
            scores=scores,
            columns=columns(study),
            knobs_of=by_id,
            ties=study_tables.ties(study),
            few=len(study.cells) <= study_tables.MANY,
            drawn=page.draw(drawn),
            baseline=study_tables.baseline(study).label,
            differences=study_tables.difference_rows(study),
            identity=identity_rows(study, counted),
            one=len(study.denoisers) == 1,
            operations=OPERATIONS,
            notes=notes(study, counted),
            shared=shared(study),
            machine=machine_text([cell.run for cell in study.cells]),
            losses=page.draw(losses),
            losses_note=LOSSES,
            shown=shown,
            columns_said=study_pictures.columns_said(study, shown) if shown else "",
            protocol=protocol(study),
            varied=varied([replace(cell.run, name=cell.label) for cell in study.cells]) if len(study.cells) > 1 else {},
        )
        .encode()
    )
    page.write_all(out, contents, "index.html")
    return out / "index.html"
