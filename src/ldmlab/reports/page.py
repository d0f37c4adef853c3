"""One page a run or study, in the order of a paper's results section: `index.html`, `report.md`, `table.csv`,
`figures/`.

The page is one file that opens from disk: no script, no network, pictures inside. Equal runs give equal bytes:
nothing here reads a clock.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ldmlab.errors import DataError
from ldmlab.reports import figures, pictures, tables
from ldmlab.reports.collect import Run, Score, StageRecord, read_runs, varied
from ldmlab.reports.figures import Figure
from ldmlab.reports.tables import Table

TEMPLATES = Path(__file__).parent / "templates"
HEADLINE = ("fid", "is", "precision", "recall", "label_agreement", "psnr", "kid", "rfid", "ssim", "perceptual")
LEADING = {"denoiser": ("loss",), "autoencoder": ("psnr", "loss")}


@dataclass(frozen=True)
class Drawing:
    """A figure as the page shows it."""

    figure: Figure
    light: str
    dark: str


@dataclass(frozen=True)
class Headline:
    label: str
    unit: str
    text: str
    interval: str
    anchor: str
    note: str


@dataclass(frozen=True)
class Block:
    """A picture section of one run: who, from where, and a grid."""

    run: Run
    stage: StageRecord
    title: str
    grid: pictures.Grid


@dataclass(frozen=True)
class Reconstruction:
    run: Run
    what: str
    stage: StageRecord
    uri: str
    width: int
    columns: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    run: Run
    stage: StageRecord
    images: float | None
    rate: float | None


def seconds(value: float | None) -> str:
    """A duration as a person says it: 41.2 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rate(value: float) -> str:
    """Images a second, three significant digits."""
    return tables.shown(Score(value))[0]


def option(value: Any) -> str:
    """An option's value as the command line would take it."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def facts(mapping: dict[str, Any]) -> list[tuple[str, str]]:
    """A card as (field, text) pairs; nested values as compact JSON."""
    return [(str(key), option(value)) for key, value in mapping.items()]


def yaml_text(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)


def description(runs: list[Run]) -> str:
    """One sentence: what was run or compared, from what the stages say of themselves."""
    if len(runs) > 1:
        options = list(varied(runs))
        named = ", ".join(options[:4]) + (f" and {len(options) - 4} more options" if len(options) > 4 else "")
        return (
            f"{len(runs)} runs, which differ in {named}." if options else f"{len(runs)} runs with equal configurations."
        )
    run = runs[0]
    parts = [
        f"{record.stage} {record.what}"
        for record in run.stages
        if record.stage in ("data", "autoencoder", "denoiser") and record.what
    ]
    sentence = "; ".join(parts) or f"Stages: {', '.join(record.stage for record in run.stages)}"
    if run.stage("denoiser") is None and run.stage("scores") is None:
        sentence += "; the first stage alone, no denoiser"
    return f"{sentence[0].upper()}{sentence[1:]}."


def headlines(run: Run) -> list[Headline]:
    """Up to six scores of the run's last snapshot and its first stage."""
    scored = [s.scores for s in run.snapshots if s.scores is not None and s.scores.done]
    sources = [*scored[-1:], *(record for record in [run.first_stage] if record is not None)]
    known = {m.key: m for m in tables.SAMPLE_METRICS + tables.FIRST_STAGE_METRICS}
    found = []
    for key in HEADLINE:
        source = next((record for record in sources if key in record.scores), None)
        if source is not None:
            metric = known[key]
            text, interval = tables.shown(source.scores[key], metric.factor)
            note = "reconstructions" if source.stage != "scores" else ""
            found.append(Headline(metric.label, metric.unit, text, interval, source.anchor, note))
    return found[:6]


def training_figures(runs: list[Run]) -> tuple[list[Figure], list[Figure]]:
    """(leading, others): the losses and validation PSNR first, then every other logged quantity, denoiser before
    autoencoder.
    """
    lead: list[Figure] = []
    rest: list[Figure] = []
    titles = {
        ("denoiser", "loss"): "Denoiser loss",
        ("autoencoder", "loss"): "Autoencoder loss",
        ("autoencoder", "psnr"): "Autoencoder PSNR (dB)",
    }
    for stage in ("denoiser", "autoencoder"):
        records = [record for run in runs for record in run.all(stage)]
        names = list(dict.fromkeys(name for record in records for name in record.quantities()))
        wanted = [name for name in LEADING[stage] if name in names]
        for name in [*wanted, *(n for n in names if n not in wanted and n != "images_per_second")]:
            figure = figures.logged(runs, stage, name, titles.get((stage, name), ""))
            if figure is not None:
                (lead if name in wanted else rest).append(figure)
    return lead, rest


def draw(each: list[Figure]) -> list[Drawing]:
    return [
        Drawing(
            figure,
            pictures.data_uri(figures.svg(figure, "light").encode(), "image/svg+xml"),
            pictures.data_uri(figures.svg(figure, "dark").encode(), "image/svg+xml"),
        )
        for figure in each
    ]


def sample_blocks(runs: list[Run]) -> list[Block]:
    blocks = []
    for run in runs:
        last = pictures.last_drawn(run)
        if last is not None and last.samples is not None:
            title = "" if last.images is None else f"after {tables.count(last.images)} images"
            blocks.append(
                Block(run, last.samples, title, pictures.by_class(last.samples.pictures, last.samples.anchor))
            )
    return blocks


def matched(runs: list[Run]) -> tuple[str, pictures.Grid] | None:
    """The same seeds side by side: across runs in a study, across snapshots in a single run. (heading, grid), or
    None.
    """
    if len(runs) > 1:
        title = "Same seeds, run by run"
        drawn = [(run, pictures.last_drawn(run)) for run in runs]
        entries = [
            (run.label, s.samples.pictures, s.samples.anchor)
            for run, s in drawn
            if s is not None and s.samples is not None
        ]
    else:
        title = "Same seeds over training"
        entries = [
            ("" if s.images is None else f"{tables.count(s.images)} images", s.samples.pictures, s.samples.anchor)
            for s in runs[0].snapshots
            if s.samples is not None and s.samples.done
        ]
    grid = pictures.same_seeds(entries)
    return None if grid is None else (title, grid)


def reconstructions(runs: list[Run]) -> list[Reconstruction]:
    found, seen = [], set()
    for run in runs:
        record = run.first_stage
        path = record.reconstructions() if record is not None else None
        if record is None or path is None or record.id in seen:
            continue
        seen.add(record.id)
        uri, width, height = pictures.file_uri(path)
        rows = ("original", "reconstruction", "error")
        network = run.stage("autoencoder") or record
        found.append(
            Reconstruction(run, network.what, record, uri, width, max(1, round(width / (height / len(rows)))), rows)
        )
    return found


def costs(runs: list[Run]) -> list[Cost]:
    rows = []
    for run in runs:
        for record in run.stages:
            trained = [row["images"] for row in record.rows]
            rates = record.curve("images_per_second", "train").values
            if record.seconds is not None or trained:
                rows.append(Cost(run, record, max(trained, default=None), median(rates) if rates else None))
    return rows


def report_markdown(title: str, runs: list[Run], found: list[Table], drawings: list[Figure]) -> str:
    lines = [f"# {tables.escape(title)}", "", tables.escape(description(runs)), ""]
    lines += [f"    {' '.join(run.command.split())}" for run in runs if run.command]
    for table in found:
        lines += ["", f"## {table.title}", "", tables.markdown(table).rstrip()]
    if drawings:
        lines += ["", "## Figures", ""]
        lines += [f"![{tables.escape(f.alt)}](figures/{f.name}.svg)\n" for f in drawings]
    lines += [
        "",
        "## Plan",
        "",
        "| run | stage | id | state | what | time | folder |",
        "|---|---|---|---|---|---:|---|",
    ]
    for run in runs:
        for record in run.stages:
            cells = (
                run.label,
                record.stage,
                record.id,
                record.state,
                record.what,
                seconds(record.seconds),
                record.place,
            )
            lines.append(f"| {' | '.join(tables.escape(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def environment() -> Any:
    """Jinja with the filters of every page; an unknown name in a template is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": tables.count,
        "seconds": seconds,
        "option": option,
        "facts": facts,
        "yaml": yaml_text,
        "rate": rate,
    }
    return made


def render(title: str, runs: list[Run], found: list[Table], groups: dict[str, list[Drawing]]) -> str:
    """The page's HTML. groups: drawings by section (scores, training, others)."""
    blocks = sample_blocks(runs)
    pairs = matched(runs)
    drawn_grids = [block.grid for block in blocks] + ([pairs[1]] if pairs else [])
    sheet = pictures.contact_sheet(blocks[0].stage.pictures) if len(runs) == 1 and blocks else None
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            runs=runs,
            description=description(runs),
            varied=varied(runs) if len(runs) > 1 else {},
            headlines=headlines(runs[0]) if len(runs) == 1 else [],
            sheet=sheet,
            tables=found,
            groups=groups,
            blocks=blocks,
            matched=pairs,
            reconstructions=reconstructions(runs),
            costs=costs(runs),
            unfinished=[(run, record) for run in runs for record in run.unfinished],
            listed=_listed(runs, drawn_grids),
            plan=_plan(runs),
            alarms=alarms(runs),
        )
    )


def alarms(runs: list[Run]) -> list[str]:
    """What the health guards said, once for a stage that several runs share."""
    told = {
        (record.id, images, text): f"{record.stage} {record.id}, after {images} images: {text}"
        for run in runs
        for record in run.stages
        for images, text in record.alarms
    }
    return list(told.values())


def _plan(runs: list[Run]) -> list[tuple[Run, list[tuple[StageRecord, bool]]]]:
    """Each run's stages, and whether this is the first time the page meets a stage: several runs may share one."""
    seen: set[str] = set()
    plan = []
    for run in runs:
        stages = []
        for record in run.stages:
            stages.append((record, record.anchor not in seen))
            seen.add(record.anchor)
        plan.append((run, stages))
    return plan


def _listed(runs: list[Run], grids: list[pictures.Grid]) -> list[tuple[Run, StageRecord, list[pictures.Tile]]]:
    """Every picture of the page once, by the stage it comes from: what its link leads to."""
    tiles = {tile.anchor: tile for grid in grids for strip in grid.strips for tile in strip.tiles}
    found = []
    for run, stages in _plan(runs):
        for record, first in stages:
            own = [tile for anchor, tile in tiles.items() if anchor == f"{record.anchor}-{tile.index}"]
            if first and own:
                found.append((run, record, sorted(own, key=lambda tile: tile.index)))
    return found


def write_all(out: Path, contents: dict[str, bytes], entry: str) -> None:
    """Writes each file beside its place and renames it into it, `entry` last; then removes what an earlier report
    listed and this one has not.

    `written.json` is that list, so nothing is ever removed that a report did not write.
    """
    listing = out / "written.json"
    before = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else []
    contents = contents | {listing.name: (json.dumps(sorted(contents), indent=1) + "\n").encode()}
    for name in sorted(contents, key=lambda name: (name == entry, name)):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(contents[name])
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    for name in set(before) - set(contents):
        stale = (out / name).resolve()
        if stale.is_relative_to(out.resolve()):
            stale.unlink(missing_ok=True)


def report(run_folders: list[Path], out: Path, title: str | None = None) -> Path:
    """Writes the report of one run or the comparison of several.

    run_folders: folders that hold a run.json, in the order they are to be listed. out: folder, made when missing; its
    earlier report is replaced file by file. title: of the page; else the run's own title, or the number of runs.
    Returns the path of index.html. Raises DataError, naming the file and the command that makes it, when a finished
    stage's result is missing or damaged; nothing is written then.
    """
    runs = read_runs([Path(folder) for folder in run_folders])
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; a report needs a folder to write to.")
    heading = title or ((runs[0].title or runs[0].label) if len(runs) == 1 else f"{len(runs)} runs compared")
    found = [table for table in (tables.samples_table(runs), tables.first_stage_table(runs)) if table is not None]
    scores = figures.score_figures(runs)
    lead, others = training_figures(runs)
    contents = {name: data for figure in [*scores, *lead, *others] for name, data in figures.files(figure).items()}
    groups = {"scores": draw(scores), "training": draw(lead), "others": draw(others)}
    contents["table.csv"] = tables.write_csv(found).encode()
    contents["report.md"] = report_markdown(heading, runs, found, [*scores, *lead, *others]).encode()
    contents["index.html"] = render(heading, runs, found, groups).encode()
    write_all(out, contents, "index.html")
    return out / "index.html"
