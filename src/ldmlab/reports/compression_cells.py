"""The runs of a study of f as the plain cells that `ldmlab.studies` judges."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldmlab.metrics.protocol import leaf_differences
from ldmlab.reports.collect import read_json
from ldmlab.reports.first_stage_cells import kind_of
from ldmlab.reports.numbers import common_card
from ldmlab.reports.records import Run, StageRecord
from ldmlab.reports.study_cells import SEEDS, Study, StudyCell, group_of, words
from ldmlab.studies.cells import TREATMENT, Arm, Cell, CellTable, Point
from ldmlab.studies.pairs import pairs

KEY = "fid"
FACTS = ("objects",)  # of the data's options: what a claim may compare
OF_PICTURES = ("reference", "extractor_hash")  # of the protocol: what other pictures have other ones of
PIXELS = "pixels"


class TrainingWork(NamedTuple):
    """Of each denoiser, by its id. training: (parameters, operations of training on an image); before: operations of its first stage's
    training and of encoding its images.
    """

    training: Mapping[str, tuple[int, float]] = {}
    before: Mapping[str, float] = {}


def read_table(study: Study, work: TrainingWork, key: str = KEY) -> CellTable:
    """The trained cells with this score under the protocol that most share (a sampling seed may differ, and pictures of another kind have
    their own reference and extractor). No cells where f is the same for all and nothing was trained twice.
    """
    trained = [cell for cell in study.cells if not cell.closed_form]
    scored = [cell for cell in trained if key in cell.scores.scores]
    own, scales = _comparable(scored, key)
    left_out = len(scored) - len(own)
    shapes = {cell.run.id: shape for cell in own if (shape := shape_of(cell.run)) is not None}
    own = [cell for cell in own if cell.run.id in shapes]
    names, treatments = _names(own, study), _treatments(own, study)
    measured = all(
        speed_of(cell.samples) is not None for cell in own
    )  # all or none: two kinds of measurement do not compare
    arms = {
        cell.run.id: Arm(
            names[cell.run.id],
            *shapes[cell.run.id],
            _facts(cell) | treatments.get(cell.run.id, {}),
            cell.run.choice("ae") or "",
        )
        for cell in own
    }
    table = CellTable(tuple(_cell(cell, arms[cell.run.id], work, key, measured) for cell in own), left_out, scales > 1)
    return table if table.varies_f or pairs(table) else CellTable(())


def _comparable(scored: list[StudyCell], key: str) -> tuple[list[StudyCell], int]:
    """(the cells of one protocol, in how many sets of reference and extractor: one for each kind of pictures at most)."""

    def usual(cells: list[StudyCell]) -> list[StudyCell]:
        card = common_card([cell.compared for cell in cells], key)
        return [cell for cell in cells if not leaf_differences(cell.compared.protocol(key), card)]

    shared = common_card([_without_pictures(cell) for cell in scored], key)
    kinds: dict[str, list[StudyCell]] = {}
    for cell in scored:
        if not leaf_differences(_without_pictures(cell).protocol(key), shared):
            kinds.setdefault(repr(_facts(cell)), []).append(cell)
    own = [cell for cells in kinds.values() for cell in usual(cells)]
    return own, len({repr([cell.scores.card.get(name) for name in OF_PICTURES]) for cell in own})


def _without_pictures(cell: StudyCell) -> StageRecord:
    card = {name: value for name, value in cell.compared.card.items() if name not in OF_PICTURES}
    return replace(cell.compared, card=card)


def by_f(study: Study, table: CellTable) -> Study:
    """Of a study of f the cells in the order of its arms: pixels, then each family by rising f; what is not compared comes last."""
    if not table.varies_f:
        return study
    places = {cell.denoiser: table.arms.index(cell.arm) for cell in table.cells}

    def place(cell: StudyCell) -> tuple[bool, int]:
        return cell.closed_form, places.get(cell.denoiser.id if cell.denoiser else "", len(table.arms))

    cells, lines = sorted(study.cells, key=place), sorted(study.lines, key=lambda line: place(line.cells[0]))
    return replace(study, cells=tuple(cells), lines=tuple(lines))


def shape_of(run: Run) -> tuple[str, int, int] | None:
    """(family, f, c) of the first stage; None where it is not scored yet."""
    record = run.stage("reconstructions")
    if record is None or not record.done:
        return None
    facts = read_json(record.folder / "facts.json", record.command)
    return (PIXELS if facts["f"] == 1 else kind_of(facts).lower()), int(facts["f"]), int(facts["c"])


def _facts(cell: StudyCell) -> dict[str, Any]:
    data = cell.run.config.get("data") or {}
    return {name: data[name] for name in FACTS if name in data}


def _names(cells: list[StudyCell], study: Study) -> dict[str, str]:
    """An arm's name: the chosen first stage, with the other knobs only where two arms would be called alike."""
    knobs = tuple(knob for knob in study.knobs if knob not in SEEDS)
    keys = {cell.run.id: (str(cell.run.choice("ae")), words(cell, knobs, study.knobs)) for cell in cells}
    alike = Counter(ae for ae, _ in set(keys.values()))
    return {id_: ae if alike[ae] == 1 or not text else text for id_, (ae, text) in keys.items()}


def _treatments(cells: list[StudyCell], study: Study) -> dict[str, dict[str, Any]]:
    """What was done beside the choice of a first stage and of data, as a fact of each run's arm; empty where all had the same.

    A knob that follows from the first stage (a patch that grows as f falls) is none.
    """
    knobs = tuple(knob for knob in study.knobs if knob not in SEEDS and knob != "ae" and group_of(knob) != "data")
    values = {knob: {(cell.run.choice("ae"), repr(cell.knobs[knob])) for cell in cells} for knob in knobs}
    first_stages = {cell.run.choice("ae") for cell in cells}
    own = tuple(knob for knob in knobs if len(values[knob]) > len(first_stages))
    found = {cell.run.id: words(cell, own, study.knobs) for cell in cells}
    return {id_: {TREATMENT: text} for id_, text in found.items()} if len(set(found.values())) > 1 else {}


def _cell(cell: StudyCell, arm: Arm, work: TrainingWork, key: str, measured: bool) -> Cell:
    config, denoiser = cell.run.config, cell.denoiser
    ae, ldm = config.get("ae") or {}, config.get("ldm") or {}
    points = tuple(
        _point(snapshot.scores, snapshot.images, ldm, key, denoiser)
        for snapshot in cell.run.snapshots
        if snapshot.scores is not None and snapshot.scores.done and snapshot.images and key in snapshot.scores.scores
    )
    id_ = "" if denoiser is None else denoiser.id
    flops = work.training[id_][1] if id_ in work.training else None
    images = None if denoiser is None else denoiser.trained_images
    return Cell(
        arm, int(ae.get("seed") or 0), int(ldm.get("seed") or 0), int(cell.scores.card.get("seed") or 0),
        ae.get("fit") is not None, points, None if denoiser is None else denoiser.seconds,
        None if flops is None or images is None else flops * images,
        int(cell.scores.card.get("samples") or 0), cell.samples.seconds, work.before.get(id_),
        speed.both if measured and (speed := speed_of(cell.samples)) is not None else None, id_,
    )  # fmt: skip


def _point(scores: StageRecord, images: int, ldm: dict[str, Any], key: str, denoiser: StageRecord | None) -> Point:
    fit, score = ldm.get("fit") or {}, scores.scores[key]
    end = math.ceil(fit["images"] / fit["batch_size"]) * fit["batch_size"] if "images" in fit else images
    low, high = score.bounds
    seconds = None if denoiser is None else seconds_at(denoiser, images)
    return Point(round(images / end, 4), images, score.value, low, high, score.replicates, seconds, scores.place)


class ImagesPerSecond(NamedTuple):
    """Images a second. sampler: without the decoder; both: with it."""

    sampler: float
    both: float


def speed_of(samples: StageRecord) -> ImagesPerSecond | None:
    """As the samples' card has it; None for samples from before it was measured."""
    found = samples.provenance.get("sampling") or {}
    if not found or not found["sampler_seconds"]:
        return None
    return ImagesPerSecond(
        found["images"] / found["sampler_seconds"],
        found["images"] / (found["sampler_seconds"] + found["decoder_seconds"]),
    )


def seconds_at(denoiser: StageRecord, images: int) -> float | None:
    """Of its training until it had seen so many images: from its log, between two lines in proportion."""
    rows = [row for row in denoiser.rows if "time" in row]
    return float(np.interp(images, [r["images"] for r in rows], [r["time"] for r in rows])) if rows else None


def csv_rows(table: CellTable) -> list[dict[str, Any]]:
    """A record per cell and snapshot, in full precision; without replicates, which stand in each scores.json."""
    return [
        {"arm": cell.arm.name, "family": cell.arm.family, "f": cell.arm.f, "c": cell.arm.c, **cell.arm.facts,
         "first_stage_seed": cell.first_seed if cell.trained else "", "denoiser_seed": cell.denoiser_seed,
         "sampling_seed": cell.sampling_seed, "share": point.share, "images": point.images, "fid": point.value,
         "fid_low": point.low, "fid_high": point.high, "training_flops": cell.flops, "training_seconds": cell.seconds,
         "first_stage_flops": cell.first_stage_flops, "seconds_at_share": point.seconds,
         "samples": cell.samples, "sampling_seconds": cell.sampling_seconds}
        for cell in table.cells
        for point in cell.points
    ]  # fmt: skip


def table_of(runs: list[Run], work: TrainingWork | None = None) -> CellTable:
    """`read_table` from the runs themselves."""
    from ldmlab.reports.study_cells import read_study

    study = read_study(runs)
    return read_table(study, work or TrainingWork()) if study.cells else CellTable(())


def folder_table(folders: list[Path]) -> CellTable:
    """The same from run folders. Raises DataError for a damaged one."""
    from ldmlab.reports.collect import read_runs

    return table_of(read_runs(folders))
