"""Where the FID of samples comes from: what the first stage loses, what two moments of the latents reach, what the denoiser adds.

All of it against one reference and, as far as there are images, at one N: real val images, their reconstructions, samples of a
Gaussian fitted to the latents, samples of the denoiser.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from ldmlab.errors import DataError
from ldmlab.metrics.extraction import load_features
from ldmlab.metrics.frechet import fid_score
from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.compression import COMBINED, arm_interval, named, sources
from ldmlab.reports.compression_cells import KEY
from ldmlab.reports.figures import Figure, Series, score_panel
from ldmlab.reports.numbers import KNOWN
from ldmlab.reports.records import Estimate, StageRecord
from ldmlab.reports.study_cells import Study, StudyCell
from ldmlab.studies.cells import Arm, CellTable

GREY = 6
WORDS = {"val": "val images", "reconstructions": "reconstructions", "gaussian": "Gaussian", "samples": "samples"}
FLOOR = "val"  # what no first stage and no denoiser has changed
NOTE = (
    "All against the same reference: val images as they are, decoded from their latents, samples of a Gaussian fitted to the latents, "
    "samples of the denoiser."
)
SCATTER = (
    "Bars: of the samples' FID, {combined}. rFID: val images against their own reconstructions, which is 0 for pixels."
)


@dataclass(frozen=True)
class FIDSource:
    """One first stage. rfid: of val images against their own reconstructions; the others against the study's reference.

    gain: PSNR over principal components of equal f and c, dB.
    """

    arm: Arm
    gain: Estimate | None
    rfid: Estimate | None
    fids: dict[str, Estimate]  # by WORDS
    places: dict[str, str]  # where each is kept


def rows(study: Study, table: CellTable) -> list[FIDSource]:
    """A row an arm. FIDs of val images and reconstructions are computed here from the features that lie in the store."""
    by_denoiser = {cell.denoiser: cell.arm for cell in table.cells}
    last, found = table.at(table.shares[-1]), []
    for arm in table.arms:
        own = (c for c in study.cells if c.denoiser is not None and by_denoiser.get(c.denoiser.id) == arm)
        cell = next(own, None)  # none where another arm has the same denoiser, drawn under other options of sampling
        record = None if cell is None else cell.run.stage("reconstructions")
        if cell is None or record is None or not record.done:
            continue
        interval = arm_interval(last, arm)
        fids = _of_val(cell, record)
        places = {name: record.place for name in fids}
        gaussian = next((g for g in study.gaussians if _same_first_stage(g, record) and KEY in g.scores.scores), None)
        if gaussian is not None:
            fids["gaussian"], places["gaussian"] = gaussian.scores.scores[KEY], gaussian.scores.place
        fids["samples"] = Estimate(math.exp(interval.value), math.exp(interval.low), math.exp(interval.high))
        places["samples"] = sources(table, arm, table.shares[-1])
        found.append(FIDSource(arm, record.scores.get("gain_over_linear"), record.scores.get("rfid"), fids, places))
    return found


def _same_first_stage(cell: StudyCell, record: StageRecord) -> bool:
    on = cell.run.stage("reconstructions")
    return on is not None and on.id == record.id


def _of_val(cell: StudyCell, record: StageRecord) -> dict[str, Estimate]:
    """FID of val images and of their reconstructions against the reference of the scores, at their N; {} without features."""
    root, card = cell.scores.folder.parent.parent, cell.scores.card
    reference = next(root.glob(f"reference/*-{card.get('reference')}/features.npz"), None)
    files = {"val": record.folder / "original.npz", "reconstructions": record.folder / "reconstructed.npz"}
    same = str(card.get("extractor_hash"))[:12] == record.card.get("extractor_hash")
    if reference is None or not same or not all(file.is_file() for file in files.values()):
        return {}
    return {name: _fid(file, reference, int(card["samples"])) for name, file in files.items()}


def _fid(file: Path, reference: Path, most: int) -> Estimate:
    try:
        features, real = load_features(file).features[:most], load_features(reference).features
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{file} or {reference} is damaged ({error}). Delete it and run the command that made it again."
        ) from None
    score, _ = fid_score(features, real, 200, 0)
    return Estimate(score.value, score.low, score.high)


def blocks(study: Study, table: CellTable) -> list[doc.Block]:
    found = rows(study, table)
    names = [name for name in WORDS if any(name in row.fids for row in found)]
    if len(names) < 2:
        return []
    heads = ["first stage", "c", "gain over linear (dB)", "rFID", *(f"FID of {WORDS[name]}" for name in names)]
    entries = [
        [
            named(row.arm, table),
            str(row.arm.c),
            numbers.plain_said(row.gain),
            numbers.plain_said(row.rfid),
            *(numbers.plain_said(row.fids.get(n)) for n in names),
        ]
        for row in found
    ]
    val_images = next((_images(cell) for cell in study.cells if _images(cell)), 0)
    samples = int(study.cells[0].scores.card["samples"])
    unequal = (
        f" There are {val_images} val images and {samples} samples: FID falls with N."
        if 0 < val_images < samples
        else ""
    )
    drawn = [figure for figure in (over_f(found, table), scatter(found, table)) if figure is not None]
    return [doc.Figures(drawn), doc.Table(heads, doc.entries(entries)), doc.Paragraph(f"{NOTE}{unequal}", "small")]


def _images(cell: StudyCell) -> int:
    record = cell.run.stage("reconstructions")
    return 0 if record is None else int(record.card.get("images") or 0)


def over_f(found: list[FIDSource], table: CellTable) -> Figure | None:
    """The four FIDs over f, along the curve."""
    curve = [row for row in found if row.arm in table.curve]
    series = []
    for colour, name in enumerate(WORDS):
        own = [row for row in curve if name in row.fids]
        if own:
            values, low, high = ([_end(row.fids[name], end) for row in own] for end in ("value", "low", "high"))
            look = GREY if name == FLOOR else colour
            series.append(Series(
                "", [float(row.arm.f) for row in own], values, low, high, [False] * len(own), split=WORDS[name], colour=look,
                dashed=name == FLOOR, style="points", sources=tuple(row.places[name] for row in own),
            ))  # fmt: skip
    if len(curve) < 2 or len(series) < 2:
        return None
    ticks = tuple(sorted({float(row.arm.f) for row in curve}))
    return score_panel(
        KNOWN[KEY],
        series,
        "-sources",
        "Where the FID comes from",
        NOTE,
        3.0,
        x="down-sampling factor f",
        span="log",
        ticks=ticks,
    )


def _end(score: Estimate, end: str) -> float:
    return score.value if end == "value" else score.bounds[0 if end == "low" else 1]


def scatter(found: list[FIDSource], table: CellTable) -> Figure | None:
    """FID of samples over rFID, a point a first stage."""
    known = [(row, row.rfid) for row in found if row.rfid is not None]
    families = list(dict.fromkeys(row.arm.family for row, _ in known))
    series = [
        Series(
            "", [rfid.value], [row.fids["samples"].value], [row.fids["samples"].bounds[0]], [row.fids["samples"].bounds[1]], [False],
            split=named(row.arm, table), colour=families.index(row.arm.family), style="points", sources=(row.places["samples"],),
        )
        for row, rfid in known
    ]  # fmt: skip
    if len(series) < 2:
        return None
    note = SCATTER.format(combined=COMBINED)
    return score_panel(
        KNOWN[KEY],
        series,
        "-over-rfid",
        "FID of generated images",
        note,
        5.0,
        x="rFID of the first stage",
        span="free",
    )
