"""The page of one run, or of several side by side, in the order of a paper's results section."""

from dataclasses import replace
from pathlib import Path
from statistics import median

from ldmlab.errors import DataError
from ldmlab.reports import agreement, beside, explore, figures, numbers, pictures, sizes, tables
from ldmlab.reports import document as doc
from ldmlab.reports.chain_figures import chain_figures
from ldmlab.reports.collect import read_runs
from ldmlab.reports.figures import Figure
from ldmlab.reports.pictures import Picture, Pictures
from ldmlab.reports.points import read_points
from ldmlab.reports.records import Run, StageRecord, varied

HEADLINE: tuple[str, ...] = ("fid", "fid_infinity", "is", "precision", "recall", "label_agreement")
HEADLINE += ("psnr", "kid", "rfid", "ssim", "perceptual")
LEADING = {"denoiser": ("loss",), "autoencoder": ("psnr", "loss")}
TITLES = {
    ("denoiser", "loss"): "Denoiser loss",
    ("autoencoder", "loss"): "Autoencoder loss",
    ("autoencoder", "psnr"): "Autoencoder PSNR (dB)",
}
READING = (
    "Brackets: 95 % interval; in a head, what it is over. ↑ more is better, ↓ less is better. Full precision: "
    "[table.csv](table.csv) · as text: [report.md](report.md)"
)


def report(run_folders: list[Path], out: Path, title: str | None = None) -> Path:
    """Writes the page of one run or the comparison of several: `index.html`, `report.md`, `table.csv`, `figures/`,
    `pictures/`.

    run_folders: folders that hold a run.json, in the order they are to be listed. out: folder, made when missing; its
    earlier page is replaced file by file. title: of the page; else the run's own title, or the number of runs.
    Returns the path of index.html. Raises DataError, naming the file and the command that makes it, when a finished
    stage's result is missing or damaged; nothing is written then.
    """
    runs = read_runs([Path(folder) for folder in run_folders])
    check_folder(Path(out))
    found = [table for table in (tables.samples_table(runs), tables.first_stage_table(runs)) if table is not None]
    page = document(runs, found, title)
    files = {"table.csv": numbers.csv_text(tables.csv_rows(found)).encode()}
    if len(runs) > 1:
        explored = read_points(runs)
        page = replace(page, beside=explore.beside(explored))
        files |= explore.files(explored, page, Path(out))
    return doc.write(Path(out), page.files() | files)


def check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a report needs a folder to write to.")


def document(runs: list[Run], found: list[tables.ScoreTable], title: str | None) -> doc.Document:
    one = runs[0] if len(runs) == 1 else None
    own = (one.title or one.label) if one else f"{len(runs)} runs compared"
    over = f"Run {one.id}{f' · {one.created}' if one.created else ''}" if one else f"{len(runs)} runs"
    scores, drawn = figures.score_figures(runs), sample_grids(runs)
    lead, others = training_figures(runs)
    rebuilt = reconstructions(runs)
    first = scores[:1] or ([] if one else lead[:1])
    shown = [tables.shown_table(table) for table in found]
    sections = [
        answer(runs, drawn, first, rebuilt),
        doc.Section("Scores", [*shown, doc.Paragraph(READING, "small")], "scores") if shown else None,
        agreement.section(one) if one else None,
        samples(runs, drawn),
        doc.Section("Reconstructions", rebuilt, "reconstructions") if rebuilt and (drawn or not one) else None,
        *beside.sections(runs),
        chain(runs),
        *own_sections(runs),
        training(runs, lead if first != lead[:1] else lead[1:], [f for f in scores if f not in first], others),
        cost(runs),
        sizes.section(runs),
        plan(runs),
        protocol(runs),
    ]
    missing = unfinished(runs)
    goes_on = f"What is shown below is what the store holds so far; the same command{' goes' if one else 's go'} on from there."
    kept = [section for section in sections if section is not None and section.blocks]
    return doc.Document(title or own, over, description(runs), kept, one.command if one else "", missing, goes_on)


def unfinished(runs: list[Run]) -> list[doc.Note]:
    whose = [(f" of {run.label}" if len(runs) > 1 else "", stage) for run in runs for stage in run.unfinished]
    return [doc.Note("missing", f"{stage.stage} `{stage.id}`{run}: {stage.state}") for run, stage in whose]


def description(runs: list[Run]) -> str:
    """One sentence: what was run or compared, from what the stages say of themselves."""
    if len(runs) > 1:
        differ = list(varied(runs))
        named = ", ".join(differ[:4]) + (f" and {len(differ) - 4} more options" if len(differ) > 4 else "")
        return (
            f"{len(runs)} runs, which differ in {named}." if differ else f"{len(runs)} runs with equal configurations."
        )
    (run,) = runs
    said = [f"{r.stage} {r.what}" for r in run.stages if r.stage in ("data", "autoencoder", "denoiser") and r.what]
    sentence = "; ".join(said) or f"Stages: {', '.join(record.stage for record in run.stages)}"
    if run.stage("denoiser") is None and run.stage("scores") is None:
        sentence += "; the first stage alone, no denoiser"
    return f"{sentence[0].upper()}{sentence[1:]}."


def answer(
    runs: list[Run], drawn: list[tuple[Run, StageRecord, str, Pictures]], first: list[Figure], rebuilt: list[doc.Block]
) -> doc.Section:
    """What the reader came for: pictures and scores of a run, or what differs between runs and its effect."""
    if len(runs) > 1:
        differ = varied(runs)
        table = tables.varied_table([run.label for run in runs], differ)
        right: list[doc.Block] = [doc.Section("What differs", [table])] if differ else []
        return doc.Section("", [doc.Columns([doc.Figures(first)] if first else [], right)], "answer")
    numbers_first: list[doc.Block] = [*headlines(runs[0]), *([doc.Figures(first)] if first else [])]
    if not drawn:
        inside: list[doc.Block] = [doc.Section("Reconstructions", rebuilt, "reconstructions")] if rebuilt else []
        return doc.Section("", [*numbers_first, *inside], "answer")
    _, stage, after, _ = drawn[0]
    turns = ", the classes in turn" if stage.pictures.labels else ""
    caption = f"Generated images{f' {after}' if after else ''}{turns}; unselected, in the order of their seeds."
    sheet: list[doc.Block] = [pictures.contact_sheet(stage.pictures), doc.Paragraph(caption, "small")]
    return doc.Section("", [doc.Columns(sheet, numbers_first)], "answer")


def headlines(run: Run) -> list[doc.Block]:
    """Up to six scores of the run's last snapshot and its first stage, and what their intervals are over."""
    last = run.last_scored.scores if run.last_scored is not None else None
    sources = [record for record in (last, run.first_stage) if record is not None]
    metrics = {metric.key: (metric, record) for record in reversed(sources) for metric in numbers.metrics_of([record])}
    measured = dict.fromkeys([*HEADLINE, *(metric.key for metric in numbers.metrics_of(sources[:1]))])
    chosen = [metrics[key] for key in measured if key in metrics][:6]
    found = []
    for metric, record in chosen:
        text, interval = numbers.shown(record.scores[metric.key], metric.factor)
        label = metric.label + (", reconstructions" if record.stage != "scores" else "")
        found.append(doc.Headline(label, text, metric.unit, interval, record.anchor))
    words = numbers.by_words((metric for metric, _ in chosen), "interval")
    return [doc.Headlines(found), *([doc.Paragraph(f"95 % intervals. {words}.", "small")] if words else [])]


def sample_grids(runs: list[Run]) -> list[tuple[Run, StageRecord, str, Pictures]]:
    """Each run's last drawn samples: (run, stage, "after 40 000 images", rows by class)."""
    found = []
    for n, run in enumerate(runs):
        last = pictures.last_drawn(run)
        if last is not None and (stage := last.samples) is not None:
            after = "" if last.images is None else f"after {numbers.count(last.images)} images"
            name = f"samples-{n}" if len(runs) > 1 else "samples"
            found.append((run, stage, after, pictures.by_class(stage.pictures, stage.anchor, name)))
    return found


def matched(runs: list[Run]) -> tuple[str, Pictures | None]:
    """(heading, the same seeds side by side): across runs, or across the snapshots of a single run."""
    if len(runs) > 1:
        drawn = [(run.label, s.samples) for run in runs if (s := pictures.last_drawn(run)) is not None]
    else:
        drawn = [
            ("" if s.images is None else f"{numbers.count(s.images)} images", s.samples) for s in runs[0].snapshots
        ]
    made = [(label, record.pictures, record.anchor) for label, record in drawn if record is not None and record.done]
    return f"Same seeds{', run by run' if len(runs) > 1 else ' over training'}", pictures.same_seeds(made)


def samples(runs: list[Run], drawn: list[tuple[Run, StageRecord, str, Pictures]]) -> doc.Section | None:
    if not drawn:
        return None
    heading, pairs = matched(runs)
    labels = bool(drawn[0][1].pictures.labels)
    blocks: list[doc.Block] = []
    if pairs is not None:
        columns = f"Each column is one seed{' and one class' if labels else ''}. {pairs.sizes}"
        blocks.append(doc.Section(heading, [pairs, doc.Paragraph(columns, "small")]))
    first = "the first of each class" if labels else "the first"
    for run, stage, after, grid in drawn:
        which = f"{numbers.count(grid.shown)} of {numbers.count(grid.of)} images, {first}, unselected."
        pair = " Left of each sample: its condition." if grid.conditioned else ""
        inside: list[doc.Block] = [
            grid,
            doc.Paragraph(f"{which} {grid.sizes}{pair} All of them: [{stage.place}](#{stage.anchor})", "small"),
        ]
        order = "By class" if stage.pictures.labels else "In order of seed"
        several = len(runs) > 1
        title = run.label if several else ", ".join(part for part in (order, after) if part)
        blocks.append(doc.Section(title, inside, fold=several, muted=after if several else ""))
    grids = [*([pairs] if pairs else []), *(grid for *_, grid in drawn)]
    blocks.append(
        doc.Section("Seeds and conditions of the pictures above", seeds(runs, grids), fold=True, only_page=True)
    )
    return doc.Section("Samples", blocks, "samples")


def seeds(runs: list[Run], grids: list[Pictures]) -> list[doc.Block]:
    """Every picture of the page once, by the stage it comes from: what its link leads to."""
    tiles = {tile.anchor: tile for grid in grids for row in grid.rows for tile in row.tiles}
    stages = {record.id: (run, record) for run in reversed(runs) for record in run.all("samples")}
    blocks: list[doc.Block] = []
    for run, record in reversed(stages.values()):
        own = sorted((t for a, t in tiles.items() if a == f"{record.anchor}-{t.index}"), key=lambda tile: tile.index)
        if own:
            made = f", made by `{run.command}`" if run.command else ""
            blocks += [
                doc.Paragraph(f"`{record.place}`{made}", "small"),
                doc.Anchors([(tile.anchor, tile.caption) for tile in own]),
            ]
    return blocks


def reconstructions(runs: list[Run]) -> list[doc.Block]:
    blocks: list[doc.Block] = []
    stages = {run.first_stage.id: (run, run.first_stage) for run in reversed(runs) if run.first_stage is not None}
    for n, (run, record) in enumerate(reversed(stages.values())):
        path = record.folder / "reconstructions.png"
        if path.is_file():
            name = f"reconstructions-{n}" if len(runs) > 1 else "reconstructions"
            network, who = run.stage("autoencoder") or record, f"{run.label}: " if len(stages) > 1 else ""
            caption = f"{who}{network.what} on validation images. [{record.place}](#{record.anchor})"
            picture = pictures.read_picture(path, name, ("original", "reconstruction", "error × 4"))
            blocks += [picture, doc.Paragraph(caption, "small")]
    return blocks


def chain(runs: list[Run]) -> doc.Section | None:
    drawn = chain_figures(runs)
    return doc.Section("Rate and distortion along the chain", [doc.Figures(drawn)], "chain") if drawn else None


def own_sections(runs: list[Run]) -> list[doc.Section]:
    """A section for each stage that put something on the page itself (`report.json`)."""
    sections = []
    for record in {stage.id: stage for run in runs for stage in run.stages if stage.section}.values():
        table, title = record.section.get("table") or {}, str(record.section.get("title") or record.stage)
        blocks: list[doc.Block] = [doc.Paragraph(str(record.section["text"]))] if record.section.get("text") else []
        if table.get("columns"):
            rows = [["–" if value is None else str(value) for value in row] for row in table["rows"]]
            blocks.append(doc.Table([str(head) for head in table["columns"]], doc.entries(rows)))
        for name in record.section.get("pictures") or ():
            shown = pictures.read_picture(record.folder / name, f"{record.stage}-{Path(name).stem}", (Path(name).stem,))
            blocks += [
                doc.Paragraph(Path(name).stem, "small"),
                Picture(shown.name, shown.png, shown.width, min(shown.width, 358), shown.names),
            ]
        blocks.append(doc.Paragraph(f"[{record.place}](#{record.anchor})", "small"))
        sections.append(doc.Section(title, blocks, f"section-{record.id}"))
    return sections


def training_figures(runs: list[Run]) -> tuple[list[Figure], list[Figure]]:
    """(leading, others): the losses and validation PSNR first, then every other logged quantity, denoiser before
    autoencoder.
    """
    lead: list[Figure] = []
    rest: list[Figure] = []
    for stage, leading in LEADING.items():
        records = [record for run in runs for record in run.all(stage)]
        names = dict.fromkeys(name for record in records for name in record.quantities())
        for name in dict.fromkeys([*(n for n in leading if n in names), *names]):
            if name != "images_per_second":
                figure = figures.logged(runs, stage, name, TITLES.get((stage, name), ""))
                (lead if name in leading else rest).extend([figure] if figure is not None else [])
    return lead, rest


def training(runs: list[Run], lead: list[Figure], scores: list[Figure], others: list[Figure]) -> doc.Section:
    said = [doc.Note("remark", text) for text in alarms(runs)]
    blocks: list[doc.Block] = [doc.Notes(said)] if said else []
    blocks += [doc.Figures(lead)] if lead else []
    blocks += [doc.Section("Other scores of generated images", [doc.Figures(scores)])] if scores else []
    if others:
        blocks.append(
            doc.Section("Every other logged quantity", [doc.Figures(others)], fold=True, muted=str(len(others)))
        )
    return doc.Section("Training", blocks, "training")


def alarms(runs: list[Run]) -> list[str]:
    """The warnings of the health checks, once for a stage that several runs share."""
    found = [(r, images, text) for run in runs for r in run.stages for images, text in r.alarms]
    return list(dict.fromkeys(f"{r.stage} {r.id}, after {images} images: {text}" for r, images, text in found))


def cost(runs: list[Run]) -> doc.Section:
    several, rows = len(runs) > 1, []
    for run in runs:
        for record in run.stages:
            rates, images = record.curve("images_per_second", "train").values, record.trained_images
            if record.seconds is not None or images is not None:
                speed = numbers.plain(median(rates) if rates else None)
                own = [record.stage, record.what, numbers.count(images), speed, numbers.seconds(record.seconds)]
                own.append(numbers.seconds(record.cpu_seconds))
                rows.append([*([run.label] if several else []), *own])
    if not rows:
        return doc.Section("Cost", [doc.Paragraph("Nothing has run yet.", "muted")], "cost")
    heads = [*(["run"] if several else []), "stage", "what", "training images", "images/s", "time", "CPU time"]
    note = f"images/s: median of the logged training rates. {numbers.CPU_TIME} {machine(runs)}"
    return doc.Section(
        "Cost", [doc.Table(heads, doc.entries(rows), left=len(heads) - 4), doc.Paragraph(note, "small")], "cost"
    )


def machine(runs: list[Run]) -> str:
    """Where the runs were made, each machine once."""
    said = dict.fromkeys(", ".join(f"{k} {v}" for k, v in run.machine.items() if v is not None) for run in runs)
    return f"Machine: {'; '.join(text for text in said if text) or 'not recorded'}."


def plan(runs: list[Run]) -> doc.Section:
    anchors = {record.anchor for run in runs for record in run.stages}
    blocks: list[doc.Block] = []
    for run in runs:
        table = tables.stages_table(list(run.stages), anchors)
        command: list[doc.Block] = [doc.Code(run.command)] if run.command else []
        blocks += [doc.Section(run.label, [*command, table], muted=run.id)] if len(runs) > 1 else [table]
    return doc.Section("Plan", blocks, "plan")


def protocol(runs: list[Run]) -> doc.Section:
    """Cards, configurations and provenance of every stage, once."""
    stages = list({record.anchor: record for run in reversed(runs) for record in reversed(run.stages)}.values())[::-1]
    blocks: list[doc.Block] = []
    for r in stages:
        if r.card:
            title = f"Protocol card of {r.stage} `{r.id}`"
            blocks.append(doc.Section(title, [card_facts(r)], fold=True, muted=r.card_short, only_page=True))
    for r in stages:
        inside: list[doc.Block] = [doc.FactList(numbers.facts(r.provenance))] if r.provenance else []
        inside += [doc.Code(r.config_text)] if r.config_text else []
        if inside:
            title, muted = f"{r.stage.capitalize()} `{r.id}`", "configuration and provenance"
            blocks.append(doc.Section(title, inside, fold=True, muted=muted, only_page=True))
    for run in runs:
        if run.config:
            title, muted = f"Full configuration of {run.label}", "every default written out"
            blocks.append(doc.Section(title, [doc.Code(run.yaml)], fold=True, muted=muted, only_page=True))
    return doc.Section("Protocol and configuration", blocks, "protocol")


def card_facts(record: StageRecord) -> doc.FactList:
    """Its protocol card, the settings of its metrics, and how each score was computed."""
    declared = {f"{name} settings": said["settings"] for name, said in record.declared.items() if said.get("settings")}
    methods = {name: score.method for name, score in record.scores.items() if score.method}
    return doc.FactList([*numbers.facts(record.card | declared), *methods.items()])
