"""What a person gets to see of finished runs: the line at a command's end, pictures, pages. Reads the store, makes nothing new in it."""

import fnmatch
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ldmlab.errors import DataError
from ldmlab.reports.records import Estimate
from ldmlab.store.files import atomic, read_json, write_json
from ldmlab.store.store import make_id

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo


def on_main() -> bool:
    """Whether this process is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def find_runs(store: Path, pattern: str | None, study: str | None = None) -> list[Path]:
    """Run folders by glob over `<name>-<id>`, of one study when it is named, oldest first. Raises DataError for none."""
    root = store / "runs"
    by_name = [
        p.parent
        for p in root.glob("*/run.json")
        if pattern in (None, "all") or fnmatch.fnmatch(p.parent.name, str(pattern))
    ]
    if not by_name:
        known = ", ".join(sorted(p.name for p in root.glob("*"))) or "none yet"
        raise DataError(f"no run in {root} matches runs={pattern or 'all'}. Runs there: {known}.")
    records = {p: read_json(p / "run.json") for p in by_name}
    found = [p for p in by_name if study is None or study in records[p].get("studies", [])]
    if not found:
        known = ", ".join(sorted({s for r in records.values() for s in r.get("studies", [])})) or "none"
        raise DataError(
            f"study={study}: no run in {root} was made by that sweep. Studies there: {known}. "
            f"Make it: python src/train.py -m sweeps={study}; or choose runs by name: runs='…-*'."
        )
    return sorted(found, key=lambda p: (records[p]["created"], p.name))


def make_page(run: Path) -> Path:
    """The page of one run, in the run's own folder."""
    from ldmlab.reports.run import report

    if (run / "index.html").is_file() and not os.access(run, os.W_OK):
        return shown(run / "index.html")  # a read-only store: the page as it was
    return shown(report([run], run))


def make_report(runs: list[Path], out: Path | None, store: Path, study: str | None = None) -> Path:
    """One page of several runs: in `out`, or in the store under an id of the runs it shows.

    Runs of a study that end at their first stage get the page of first stages, others the page of samples.
    """
    from ldmlab.reports import first_stages, run
    from ldmlab.reports import study as samples

    folder = out or store / "reports" / make_id("report", 1, {"runs": [run.name for run in runs]}, {})
    if study is None:
        return shown(run.report(runs, folder))
    missing = missing_cells(store, study)
    if all(first_stages.ends_there(each) for each in runs):
        return shown(first_stages.report(runs, folder, study, missing))
    from ldmlab.pipeline import counts

    found = counts.count(runs)
    return shown(
        samples.report(runs, folder, study, missing, samples.Counted(found.found, found.refused, found.before))
    )


def advice(runs: list[Path]) -> list[str]:
    """What a study of f advises, in sentences for the terminal; none for another study."""
    from ldmlab.reports import compression, first_stages
    from ldmlab.reports.compression_cells import folder_table

    if all(first_stages.ends_there(each) for each in runs):
        return []
    table = folder_table(runs)
    return compression.advice_lines(table) if table.cells else []


def missing_cells(store: Path, study: str) -> list[tuple[str, str]]:
    """(words, why) of the jobs that failed or did not run when the study's sweep was last run; empty when none is known.

    Words that all jobs of the sweep have are left out.
    """
    path = store / "sweeps" / study / "jobs.json"
    jobs = read_json(path)["jobs"] if path.exists() else []
    whys = {n: "not run yet" if job["exit_code"] is None else f"exit code {job['exit_code']}, see {shown(path.parent / job['log'])}"
            for n, job in enumerate(jobs) if job["exit_code"] != 0}  # fmt: skip
    same = set.intersection(*(set(job["words"]) for job in jobs)) if len(jobs) > 1 else set()
    return [(" ".join(word for word in jobs[n]["words"] if word not in same), why) for n, why in whys.items()]


def shown(path: Path) -> Path:
    """As short as it can be typed."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def export_samples(run: Path, out: Path | None) -> str:
    """Each sample of a run as a PNG named by number and class, with its seed and condition inside; the sheet, the same beside their
    conditions; `samples.json`. Returns what to print.
    """
    from PIL import Image

    from ldmlab.pipeline.sheets import save_sheet
    from ldmlab.reports.collect import read_samples
    from ldmlab.reports.condition_sheet import condition_sheet

    record = read_json(run / "run.json")
    stage = next(s for s in reversed(record["stages"]) if s["stage"] == "samples")
    source = (run / stage["folder"]).resolve()
    samples = read_samples(source, record["command"])
    folder = out or source.parent.parent / "pictures" / source.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, image_HWC in enumerate(samples.images_NHWC):
        name = samples.class_name(samples.labels[i]) if samples.labels else ""
        file = f"{i:05d}{'-' + name.replace(' ', '_').replace('/', '_') if name else ''}.png"
        said = {"file": file, "seed": samples.seeds[i], "class": name, "description": samples.description(i)}
        rows.append({key: value for key, value in said.items() if value != ""})
        with atomic(folder / file) as beside:
            Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC).save(
                beside, format="png", pnginfo=_inside(rows[-1], source.name, record["command"])
            )
    write_json(folder / "samples.json", rows)
    save_sheet(folder / "grid.png", samples.images_NHWC, math.ceil(math.sqrt(len(samples))))
    lines = [f" {len(samples)} images   {shown(folder)}/{rows[0]['file']} …", f"   sheet  {shown(folder / 'grid.png')}"]
    sheet = condition_sheet(samples, read_json(source / "conditions.json").get("share") or [])
    if sheet is not None:
        with atomic(folder / "conditions.png") as beside:
            sheet.save(beside, format="png", pnginfo=_inside({}, source.name, record["command"]))
        lines.append(f"   beside {shown(folder / 'conditions.png')} (what each was drawn for)")
    seeds = list(dict.fromkeys(samples.seeds))
    listed = f"{', '.join(map(str, seeds[:8]))}{' …' if len(seeds) > 8 else ''}"
    return "\n".join([*lines, f"   seeds  {shown(folder / 'samples.json')}: {listed}"])


def _inside(row: dict[str, object], samples: str, command: str) -> "PngInfo":
    """What a PNG says of itself: the sample's row of samples.json, the samples' folder in the store, the command."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in {**row, "samples": samples, "command": command}.items():
        info.add_itxt(f"ldmlab {key}", str(value))
    return info


def interval(score: Estimate) -> str:
    """`12.3 [11.9, 12.8]` as it is stored, or the value alone when it has no interval."""
    bounds = "" if score.low is None or score.high is None else f" [{_digits(score.low)}, {_digits(score.high)}]"
    return f"{_digits(score.value)}{bounds}"


def _digits(x: float) -> str:
    """Four of them, or all before the point: 12740 and not 1.274e+04, as FID of photographs has it."""
    return f"{x:.0f}" if 9999.5 <= abs(x) < 1e9 else f"{x:.4g}"


def headline(folder: Path) -> str:
    """A run's scores with intervals, in a few lines."""
    from ldmlab.reports import beside
    from ldmlab.reports.collect import read_run
    from ldmlab.reports.numbers import by_words, metrics_of

    run = read_run(folder)
    lines = [f"\n run {run.id}  {run.title}"]
    scored = [s for s in run.stages if s.state == "done" and s.stage in ("reconstructions", "scores")]
    for record in scored:
        label = "reconstructions"
        if record.stage == "scores":
            images = record.snapshot_images
            untrained = "closed form" if record.card.get("steps") is None else "imported weights"
            label = untrained if images is None else f"after {images:,} images".replace(",", " ")
        scores = [(m, record.scores[m.key]) for m in metrics_of([record])]
        said = [
            f"{m.label} {interval(score)}{m.raw_unit}" for m, score in scores if score.low is not None or score.method
        ]
        lines.append(f"   {label:<24}{'   '.join(said)}")
        lines += [f"   {'':<24}{line}" for line in beside.lines(record)]
    if words := by_words(metrics_of(scored), "interval"):
        lines.append(f"   {'95 % intervals':<24}{words}")
    if scored and scored[-1].card_short:
        lines.append(f"   {'protocol':<24}{scored[-1].card_short}")
    notes = dict.fromkeys(warning for record in scored for warning in record.warnings)
    return "\n".join([*lines, *(f"   note: {note}" for note in notes)])
