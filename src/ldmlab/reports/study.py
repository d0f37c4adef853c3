"""The page of a study of generated images: one denoiser sampled in many ways, or many denoisers sampled in one.

What varies among the runs decides its shape (`study_cells`): scores along an axis, or cell by cell. Beside the page lies
`table.csv`, every cell in full precision.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ldmlab.errors import DataError
from ldmlab.metrics.protocol import leaf_differences
from ldmlab.reports import compression_page, explore, figures, numbers, sizes, tables
from ldmlab.reports import document as doc
from ldmlab.reports.collect import read_runs
from ldmlab.reports.compression_cells import TrainingWork, by_f
from ldmlab.reports.compression_cells import csv_rows as compression_csv
from ldmlab.reports.figures import HEIGHT, ROW, ROW_MARGIN, Figure, round_ticks, score_line, score_panel
from ldmlab.reports.numbers import MetricDeclaration, common_card
from ldmlab.reports.pictures import Pictures, same_seeds
from ldmlab.reports.points import read_points
from ldmlab.reports.records import Run, split_fields, varied
from ldmlab.reports.run import READING, alarms, check_folder, machine, unfinished
from ldmlab.reports.study_cells import Axis, Line, Study, StudyCell, links, read_study, scored, trained_label, words
from ldmlab.reports.study_losses import loss_figures
from ldmlab.reports.study_text import MANY, baseline, difference, difference_rows, question, ties, title_of, verdicts
from ldmlab.reports.tables import Scored, ScoreRow, ScoreTable

BANDS = "95 % interval of each score"
COINCIDE = 0.02  # of an interval's width: nearer than this at every point, two lines are drawn as one
FEW = 4  # lines that a panel of usual height holds, with their bands
COLUMNS = 10  # pictures of a row
LOSSES = "Losses carry the weights of their training: between different objectives they are not comparable."
OPERATIONS = (
    "GFLOP an image: of training, three forward passes, multiply and add counted as two. Images/s and times are "
    f"measurements of the machine. {numbers.CPU_TIME}"
)
SAME_NOISE = ". In each column all cells begin from the same noise, drawn in pixels and projected on the latent's principal components"
LISTED = 6  # missing cells that are named one by one
GOES_ON = "The same sweep makes what is missing and repeats nothing."


class Counted(NamedTuple):
    """By denoiser id: (parameters, operations of training on one image), or why they could not be counted; before: operations of its
    first stage's training and of encoding its images.
    """

    work: Mapping[str, tuple[int, float]]
    refused: Mapping[str, str]
    before: Mapping[str, float] = {}


def report(
    run_folders: list[Path],
    out: Path,
    name: str,
    missing: list[tuple[str, str]],
    counted: Counted,
    title: str | None = None,
) -> Path:
    """Writes the page of a study of generated images to the folder `out`, replacing an earlier one file by file.

    run_folders: folders that hold a run.json. name: the study's, as in study=… missing: (words, why) of cells that failed.
    Returns the path of index.html. Raises DataError when no cell is scored, or naming the file, when a finished stage's
    result is missing or damaged; nothing is written then.
    """
    runs = read_runs([Path(folder) for folder in run_folders])
    check_folder(Path(out))
    study, compared = scored_study(runs, name, counted)
    explored = read_points(runs, counted.work)
    page = document(study, runs, name, missing_notes(missing, runs), counted, title, compared[1:])
    page = replace(page, beside=explore.beside(explored))
    files = {"table.csv": numbers.csv_text(csv_rows(study)).encode()}
    if (cells := compared[0]).cells:
        files["cells.csv"] = numbers.csv_text(compression_csv(cells)).encode()
    return doc.write(Path(out), page.files() | files | explore.files(explored, page, Path(out)))


def scored_study(runs: list[Run], name: str, counted: Counted) -> tuple[Study, compression_page.OfF]:
    """The cells, and what a study of f says of them. Raises DataError when no cell is scored."""
    study = read_study(runs)
    if not study.cells:
        raise DataError(f"study={name}: no samples are scored yet. Make them: python src/train.py -m sweeps={name}")
    compared = compression_page.sections(study, runs, TrainingWork(counted.work, counted.before), name)
    if study.ladder and not compared[0].cells:  # not a study of f: no cell may stand apart
        study = read_study(runs, laddered=False)
    return by_f(study, compared[0]), compared


def missing_notes(missing: list[tuple[str, str]], runs: list[Run]) -> list[doc.Note]:
    notes = [doc.Note("missing", f"`{words}`, {why}") for words, why in missing[:LISTED]]
    if len(missing) > LISTED:
        notes.append(doc.Note("missing", f"{len(missing) - LISTED} more cells of the sweep, not run yet or failed"))
    return [*notes, *unfinished(runs)]


def document(
    study: Study,
    runs: list[Run],
    name: str,
    missing: list[doc.Note],
    counted: Counted,
    title: str | None,
    of_f: tuple[list[doc.Block], list[doc.Section]] = ([], []),
) -> doc.Document:
    """of_f: what a study of f has at the head of the page and below it."""
    drawn, losses, shown = score_figures(study), loss_figures(study), side_by_side(study)
    said = [doc.Note("comparison", text) for text in verdicts(study)]
    answer: list[doc.Block] = [*of_f[0], *([doc.Notes(said, "verdicts")] if said else []), doc.Figures(drawn[:2])]
    sections = [
        doc.Section("", answer, "answer"),
        *of_f[1],
        scores(study, runs),
        doc.Section("The other scores", [doc.Figures(drawn[2:])] if drawn[2:] else [], "figures"),
        doc.Section("Samples", samples(study, shown), "samples"),
        identity(study, counted),
        *filter(None, [sizes.section([cell.run for cell in study.cells])]),
        doc.Section("Loss", [doc.Paragraph(LOSSES, "small"), doc.Figures(losses)] if losses else [], "training"),
        protocol(study, name),
    ]
    cells = f"{len(study.cells)} cell{'s' if len(study.cells) > 1 else ''}"
    kept = [section for section in sections if section.blocks]
    over = f"Study {name} · {cells}"
    return doc.Document(
        title or title_of(study), over, question(study), kept, "", missing, GOES_ON, True, links=links(study)
    )


# ---- scores ---------------------------------------------------------------------------------------------------------


def score_table(study: Study, runs: list[Run]) -> ScoreTable:
    """A row a cell, then the runs without scores."""
    rows = [Scored(cell.run, cell.compared, cell.label) for cell in study.cells]
    known, ids = {cell.run.id for cell in study.cells}, {cell.scores.id for cell in study.cells}
    for run in runs:
        record = run.stage("scores")
        if run.id not in known and scored(run) is None and (record is None or record.id not in ids):
            waiting = next((f"{stage.stage} {stage.state}" for stage in run.unfinished), "not scored")
            last = run.stages[-1] if run.stages else None
            rows.append(Scored(run, None, run.label, None, False, waiting, last))
    table = tables.join("Generated images", rows, "fid")
    notes = tuple(note for note in table.notes if note.kind != "tie")  # ties of all pairs are listed below
    return replace(table, card_short="", notes=notes)


def scores(study: Study, runs: list[Run]) -> doc.Section:
    by_id = {cell.scores.id: cell for cell in study.cells}
    heads = columns(study)

    def labels(row: ScoreRow) -> list[doc.Entry]:
        cell = by_id.get(row.source.id) if row.source is not None else None
        texts = knob_texts(study, cell) if cell else [row.label, *[""] * (len(heads) - 1)]
        href = f"#cell-{cell.scores.id}" if cell else ""
        anchor = f"row-{cell.scores.id}" if cell else ""
        return [doc.Entry(texts[0], href=href, anchor=anchor), *map(doc.Entry, texts[1:])]

    few = len(study.cells) <= MANY
    blocks: list[doc.Block] = [replace(tables.shown_table(score_table(study, runs), heads, labels), title="")]
    same = [doc.Note("tie", text) for text in ties(study)]
    if same:
        blocks.append(doc.Section("Not distinguishable", [doc.Notes(same)], fold=True, open=few, muted="pair by pair"))
    heads, rows = difference_rows(study)
    if rows:
        base = baseline(study).label
        note = f"Δ: the cell less {base}. Brackets: paired 95 % interval of the difference."
        inside: list[doc.Block] = [doc.Table(heads, doc.entries(rows)), doc.Paragraph(note, "small")]
        blocks.append(doc.Section(f"Less {base}", inside, fold=True, open=few, muted="cell by cell"))
    return doc.Section("Scores", [*blocks, doc.Paragraph(READING, "small")], "scores")


def columns(study: Study) -> list[str]:
    """Heads of the columns that say which cell a row is."""
    if study.axis is None:
        return ["cell"]
    names = [study.others[0].rpartition(".")[2].replace("_", " ") if len(study.others) == 1 else "line"]
    return [*(names if study.others else []), study.axis.short]


def knob_texts(study: Study, cell: StudyCell) -> list[str]:
    if study.axis is None:
        return [cell.label]
    place = f"{cell.at(study.axis):g}"
    if not study.others:
        return [place]
    shared_by = [line for line in study.lines if cell in line.cells]
    return ["all" if len(shared_by) > 1 else words(cell, study.others, study.others) or "–", place]


def csv_rows(study: Study) -> list[dict[str, Any]]:
    """A record per cell: its knobs, its place, every score with its interval, and its difference from the baseline."""
    base, records = baseline(study), []
    for cell in study.cells:
        record = {"cell": cell.label, **cell.knobs, "evaluations": cell.evaluations}
        record |= {"images": cell.scores.snapshot_images}
        record |= {"baseline": "yes" if cell is base else "no", "run_id": cell.run.id}
        record |= {"stage_id": cell.scores.id, "folder": cell.scores.place}
        for metric in study.metrics:
            d = None if cell is base else difference(base, cell, metric)
            record |= tables.score_columns(metric.key, cell.scores.scores.get(metric.key))
            less = ("_less_baseline", "_less_low", "_less_high")
            record |= tables.score_columns(metric.key, None if d is None else d.score, less)
        records.append(record)
    return records


# ---- figures --------------------------------------------------------------------------------------------------------


def score_figures(study: Study) -> list[Figure]:
    """One figure a metric: along the axis, or cell by cell."""
    return [over(study, metric, study.axis) if study.axis else rows(study, metric) for metric in study.metrics]


def rows(study: Study, metric: MetricDeclaration) -> Figure:
    cells = [cell for cell in study.cells if metric.key in cell.scores.scores]
    card = common_card([cell.compared for cell in study.cells], metric.key)
    series = [score_line(c.label, [(float(n), c.compared)], metric, card, colour=n) for n, c in enumerate(cells)]
    title, height = f"{metric.label} of generated images", ROW_MARGIN + ROW * len(series)
    return score_panel(metric, series, "", title, f"Bars: {BANDS}.", 10, x="row", span="rows", height=height)


def over(study: Study, metric: MetricDeclaration, axis: Axis) -> Figure:
    """A score along the axis, a line of cells a line; lines that lie on each other are drawn once, under all their names."""
    card = common_card([cell.compared for cell in study.cells], metric.key)
    series = []
    for n, together in enumerate(coinciding(study, axis)):
        scored = [c for c in together[0].cells if metric.key in c.scores.scores]
        # a closed form asks no network: it has no place on a logarithmic axis, and stands in the table
        points = [(c.at(axis), c.compared) for c in scored if c.at(axis) > 0 or not axis.log]
        if points:
            name = ", ".join(line.label for line in together)
            series.append(score_line(name, points, metric, card, dashed=n >= len(figures.MARKERS), colour=n))
    xs, few = sorted({x for s in series for x in s.images}), len(series) <= FEW
    return score_panel(
        metric, series, f"-over-{axis.short}", f"{metric.label} of generated images",
        f"Bands: {BANDS}." if few else f"Bars, the lines a little apart: {BANDS}.", 10,
        x=axis.title, span="log" if axis.log else "free", bars=not few, height=HEIGHT * (1 if few else 1.5),
        ticks=round_ticks(xs[0], xs[-1]) if axis.log else tuple(xs),
    )  # fmt: skip


def coinciding(study: Study, axis: Axis) -> list[list[Line]]:
    """The lines, those together that agree in every score (ddim without noise and euler are one rule)."""
    groups: list[list[Line]] = []
    for line in study.lines:
        same = next((group for group in groups if _agree(group[0], line, axis)), None)
        if same is None:
            groups.append([line])
        else:
            same.append(line)
    return groups


def _agree(one: Line, two: Line, axis: Axis) -> bool:
    if [cell.at(axis) for cell in one.cells] != [cell.at(axis) for cell in two.cells]:
        return False
    for a, b in zip(one.cells, two.cells, strict=True):
        if a.scores.scores.keys() != b.scores.scores.keys():
            return False
        for key, score in a.scores.scores.items():
            low, high = score.bounds
            far = abs(score.value - b.scores.scores[key].value) > COINCIDE * (high - low)
            if far or leaf_differences(a.compared.protocol(key), b.compared.protocol(key)):
                return False
    return True


# ---- samples --------------------------------------------------------------------------------------------------------


def side_by_side(study: Study) -> list[tuple[str, Pictures]]:
    """(title, rows): without an axis all cells; along an axis one picture a line, the axis from top to bottom. Only what
    shares seeds and classes."""
    axis, groups = study.axis, [("samples", "", [(cell.label, cell) for cell in study.cells])]
    if axis is not None:
        names = [f"samples-{n}" if len(study.lines) > 1 else "samples" for n, _ in enumerate(study.lines, 1)]
        lines = zip(names, study.lines, strict=True)
        groups = [(name, line.label, [(f"{cell.at(axis):g}", cell) for cell in line.cells]) for name, line in lines]
    found = []
    for name, title, cells in groups:
        shown = same_seeds([(label, cell.samples.pictures, "") for label, cell in cells], name, COLUMNS)
        found += [(title, shown)] if shown is not None else []
    return found


def columns_said(study: Study, shown: Pictures) -> str:
    """Which pictures stand in the columns: classes, and the numbers by which they can be made again."""
    first, places = study.cells[0].samples.pictures, [tile.index for tile in shown.rows[0].tiles]
    classes = f" and one class ({', '.join(first.class_name(first.labels[i]) for i in places)})" if first.labels else ""
    left = f"; {study.axis.title} at the left" if study.axis is not None else ""
    left += SAME_NOISE if all(cell.scores.card.get("noise") == "pixels" for cell in study.cells) else ""
    return f"Each column is one seed{classes}, images {', '.join(map(str, places))} of each cell, unselected{left}."


def samples(study: Study, shown: list[tuple[str, Pictures]]) -> list[doc.Block]:
    if not shown:
        return []
    blocks: list[doc.Block] = [
        doc.Section(title, [each], fold=True, open=n < 2) if title else each for n, (title, each) in enumerate(shown)
    ]
    return [*blocks, doc.Paragraph(columns_said(study, shown[0][1]), "small")]


# ---- what the cells are ---------------------------------------------------------------------------------------------


def identity_rows(study: Study, counted: Counted) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): what each denoiser is, and what its training cost."""
    heads = ["denoiser", "what", "parameters", "GFLOP an image", "training images", "batch", "learning rate"]
    heads += ["training time", "CPU time", "images/s"]
    rows = []
    for cell in study.denoisers:
        stage, fit = cell.denoiser, cell.fit
        assert stage is not None  # study.denoisers have one
        parameters, flops = counted.work.get(stage.id, (None, None))
        rates = stage.curve("images_per_second", "train").values
        size = ["–" if parameters is None else numbers.millions(parameters)]
        size += ["–" if flops is None else f"{flops / 1e9:.3g}"]
        options = [str(fit.get("batch_size", "–")), f"{fit['lr']:g}" if "lr" in fit else "–"]
        speed = [
            numbers.seconds(stage.seconds),
            numbers.seconds(stage.cpu_seconds),
            numbers.plain(median(rates) if rates else None),
        ]
        what = stage.what.split(" · ")[0].split(" ")[0]
        rows.append([trained_label(cell, study), what, *size, numbers.count(stage.trained_images), *options, *speed])
    return heads, rows


def notes(study: Study, counted: Counted) -> list[doc.Note]:
    """Remarks on the training that its numbers do not show."""
    own = {cell.denoiser.id for cell in study.denoisers if cell.denoiser}
    found = [
        f"Operations of denoiser {id_} are not counted: {why}" for id_, why in counted.refused.items() if id_ in own
    ]
    if len({cell.denoiser.trained_images for cell in study.denoisers if cell.denoiser}) > 1:
        found.append("Training images differ among the cells: they are not compared at equal images.")
    flops = [each for _, each in counted.work.values()]
    if len(flops) > 1 and max(flops) / min(flops) > 1.001:
        found.append(f"Operations an image differ by up to {max(flops) / min(flops) - 1:.1%}.")
    found += alarms([cell.run for cell in study.denoisers])
    ids = [{stage.id for stage in cell.run.stages} for cell in study.cells]
    for s in study.cells[0].run.stages:  # what all cells stand on
        if s.stage not in ("reconstructions", "data") and all(s.id in own for own in ids):
            found.append(f"all cells: {s.stage} `{s.place}`, {s.what} ({numbers.seconds(s.seconds)})")
    return [doc.Note("remark", text) for text in found]


def identity(study: Study, counted: Counted) -> doc.Section:
    heads, rows = identity_rows(study, counted)
    title = "What each one is, and what it costs" if len(study.denoisers) > 1 else "The denoiser"
    where = machine([cell.run for cell in study.cells])
    said, table = notes(study, counted), doc.Table(heads, doc.entries(rows), left=2)
    return doc.Section(
        title, [table, doc.Paragraph(f"{OPERATIONS} {where}", "small"), *([doc.Notes(said)] if said else [])], "cost"
    )


def protocol(study: Study, name: str) -> doc.Section:
    """What the cells share and what varies; then each cell's command, provenance and configuration."""
    cards = [{k: v for k, v in cell.scores.card.items() if k != "snapshot_images"} for cell in study.cells]
    shared, vary = split_fields(cards)
    said = f"Varies: {', '.join(vary) or 'nothing'}. The same for all cells:"
    facts = doc.FactList(numbers.facts({k: v for k, v in shared.items() if v is not None}))
    blocks: list[doc.Block] = [doc.Paragraph(said, "small"), facts]
    differ = varied([cell.run for cell in study.cells])
    if differ:
        table = tables.varied_table([cell.label for cell in study.cells], differ)
        blocks.append(doc.Section("Options that differ between the cells", [table], fold=True, muted=str(len(differ))))
    for n, cell in enumerate((*study.cells, *study.ladder)):
        made = {name: score.method for name, score in cell.scores.scores.items() if score.method}
        made_by = doc.FactList([*made.items(), *numbers.facts(cell.scores.provenance)])
        places = doc.Paragraph(f"`{cell.scores.place}`, of `{cell.samples.place}`", "small")
        config: doc.Block = doc.Paragraph(
            "Configuration: that of the first cell but for the options that differ, above.", "small"
        )
        own = cell not in study.ladder and len(study.denoisers) > 1
        config = doc.Code(cell.run.yaml) if n == 0 or own else config
        inside: list[doc.Block] = [doc.Code(cell.run.command), places, made_by, config]
        muted, id_ = "command, provenance, configuration", f"cell-{cell.scores.id}"
        blocks.append(doc.Section(cell.label, inside, id_, fold=True, muted=muted, only_page=True))
    cells = (*study.cells, *study.ladder)
    commands = [*dict.fromkeys(cell.run.command for cell in cells), f"python src/report.py study={name}"]
    blocks.append(doc.Section("Commands", [doc.Code("\n".join(commands))], fold=True))
    return doc.Section("Protocol, runs and configuration", blocks, "protocol")
