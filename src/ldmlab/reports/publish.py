"""What a person gets to see of finished runs: the line at a command's end, pictures, pages. Reads the store, makes nothing new in it."""

import fnmatch
import os
from pathlib import Path
from typing import Any

import numpy as np

from ldmlab.errors import DataError
from ldmlab.pipeline.sampling import contact_sheet
from ldmlab.store.files import atomic, read_array, read_json, write_json
from ldmlab.store.store import make_id

NAMES = {
    "fid": "FID", "is": "IS", "kid": "KID", "rfid": "rFID", "ris": "R-IS", "psnr": "PSNR", "ssim": "SSIM",
    "label_agreement": "label agreement",
    "kl_bits": "KL bits/element", "bits_per_pixel": "bits/pixel", "entropy_bits_per_pixel": "entropy bits/pixel",
}  # fmt: skip


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
    from ldmlab.reports.page import report

    if (run / "index.html").is_file() and not os.access(run, os.W_OK):
        return shown(run / "index.html")  # a read-only store: the page as it was
    return shown(report([run], run, None))


def make_report(runs: list[Path], out: Path | None, store: Path, study: str | None = None) -> Path:
    """One page of several runs: in `out`, or in the store under an id of the runs it shows.

    Runs of a study that end at their first stage get the page of first stages, others the page of samples.
    """
    from ldmlab.reports import first_stages, page, study_page

    folder = out or store / "reports" / make_id("report", 1, {"runs": [run.name for run in runs]}, {})
    if study is None:
        return shown(page.report(runs, folder, None))
    if all(first_stages.ends_there(run) for run in runs):
        return shown(first_stages.report(runs, folder, study, missing_cells(store, study)))
    from ldmlab.pipeline import counts

    found = counts.count(runs)
    counted = study_page.Counted({i: study_page.Work(*w) for i, w in found.found.items()}, found.refused)
    return shown(study_page.report(runs, folder, study, missing_cells(store, study), counted))


def missing_cells(store: Path, study: str) -> list[tuple[str, str]]:
    """(words, why) of the jobs that failed when the study's sweep was last run; empty when none did or none is known."""
    path = store / "sweeps" / study / "jobs.json"
    jobs = read_json(path)["jobs"] if path.exists() else []
    return [
        (" ".join(job["words"]), f"exit code {job['exit_code']}, see {shown(path.parent / job['log'])}")
        for job in jobs
        if job["exit_code"]
    ]


def shown(path: Path) -> Path:
    """As short as it can be typed."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def export_samples(run: Path, out: Path | None) -> str:
    """Each sample of a run as a PNG named by number, class and seed; the sheet; `samples.json`. Returns what to print."""
    from PIL import Image

    stage = next(s for s in reversed(read_json(run / "run.json")["stages"]) if s["stage"] == "samples")
    source = (run / stage["folder"]).resolve()
    images, conditions = read_array(source / "images.npy"), read_json(source / "conditions.json")
    folder = out or source.parent.parent / "pictures" / source.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (image, seed) in enumerate(zip(images, conditions["seed"], strict=True)):
        name = conditions["class_names"][conditions["label"][i]] if "label" in conditions else ""
        file = f"{i:05d}{'-' + name.replace(' ', '_').replace('/', '_') if name else ''}.png"
        with atomic(folder / file) as beside:
            Image.fromarray(image).save(beside, format="png")
        rows.append({"file": file, "seed": seed, **({"class": name} if name else {})})
    write_json(folder / "samples.json", rows)
    columns = int(np.ceil(np.sqrt(len(images))))
    with atomic(folder / "grid.png") as beside:
        sheet = contact_sheet(np.asarray(images), columns, max(1, 64 // images.shape[1]))
        Image.fromarray(sheet).save(beside, format="png")
    pictures = f" {len(images)} images   {shown(folder)}/00000….png"
    return f"{pictures}\n   sheet  {shown(folder / 'grid.png')}\n   seeds  {shown(folder / 'samples.json')}"


def headline(folder: Path) -> str:
    """A run's scores with intervals, in a few lines."""
    run = read_json(folder / "run.json")
    lines = [f"\n run {run['id']}  {run['title']}"]
    notes: list[str] = []
    for stage in run["stages"]:
        path = folder / stage["folder"] / "scores.json"
        if stage["state"] != "done" or stage["stage"] not in ("reconstructions", "scores"):
            continue
        found = read_json(path)
        values = found.get("scores") or {k: v for k, v in found.items() if isinstance(v, dict) and "value" in v}
        label = "reconstruction"
        if "snapshot_images" in found:
            images = found["snapshot_images"]
            label = "imported weights" if images is None else f"after {images:,} images".replace(",", " ")
            protocol = found["card_short"]
        lines.append(
            f"   {label:<24}"
            + "   ".join(f"{NAMES.get(k, k.replace('_', ' '))} {interval(v)}" for k, v in values.items())
        )
        notes += [w for w in found.get("warnings", []) if w not in notes]
        if stage is run["stages"][-1] and "snapshot_images" in found:
            lines.append(f"   {'protocol':<24}{protocol}")
    return "\n".join([*lines, *(f"   note: {note}" for note in notes)])


def interval(score: dict[str, Any]) -> str:
    """`12.3 [11.9, 12.8]`, or the value alone when it has no interval."""
    value, low, high = score["value"], score.get("low"), score.get("high")
    return f"{value:.4g}" if low is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"
