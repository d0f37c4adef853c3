"""What a tracker is told of one run, as plain data made from the store's records. Nothing here knows wandb.

A row of metrics.jsonl becomes one row of history: `denoiser/train/loss`, beside `denoiser/images` (images seen), over which every
metric of the stage is drawn. A scored snapshot is a row too, and so are its pictures.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.pipeline.sheets import as_rgb
from ldmlab.reports.collect import read_json
from ldmlab.reports.records import POSITION, Estimate, Run, Snapshot, StageRecord
from ldmlab.store.files import read_json as read_seal

PICTURES = 16  # of each snapshot, the first in the order of their seeds; equal in all cells of a study
FIRST_STAGES = ("autoencoder", "decoder")
KEPT = (*FIRST_STAGES, "denoiser", "cooldown", "samples")  # stages that become artifacts
SMALL = ("card.json", "config.yaml")  # what an artifact holds with tracking.artifacts=metadata
SCORE_COLUMNS = [
    "stage", "stage id", "snapshot images", "metric", "label", "unit", "better", "value", "low", "high", "interval", "method",
    "protocol", "card",
]  # fmt: skip
STAGE_COLUMNS = ["stage", "id", "what", "state", "seconds", "folder", "upstream"]


class Media(NamedTuple):
    """read: gives uint8 arrays [H, W, 3], one a caption."""

    captions: list[str]
    read: Callable[[], list[Any]]


@dataclass(frozen=True)
class HistoryRow:
    """One row of history. group: what comes before the `/` of its values, which are numbers or Media."""

    group: str
    values: dict[str, Any]


class LoggedTable(NamedTuple):
    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Artifact:
    """A finished stage. made: by this run; else the run uses it. files: name in the artifact → place on disk."""

    name: str
    type: str
    aliases: tuple[str, ...]
    made: bool
    metadata: dict[str, Any]
    files: dict[str, Path]


@dataclass(frozen=True)
class Payload:
    """All of one run. rows: in the one order that the run's stages have, and only such as stay: a run that goes on appends to
    them and changes none, so that the number of a row is its place for good. tables, summary, artifacts: of the run's end.
    """

    id: str
    name: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    notes: str
    config: dict[str, Any]
    rows: tuple[HistoryRow, ...]
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, LoggedTable] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    whole: bool = True  # whether every stage is finished


def payload(run: Run, makers: dict[str, str], artifacts: str) -> Payload:
    """run: of `collect.read_run`. makers: `made_by` of its store. artifacts: `tracking.artifacts`: none, metadata or files.

    Raises DataError, naming the file, when a finished stage's result is damaged.
    """
    kept = [] if artifacts == "none" else [record for record in run.stages if record.done and record.stage in KEPT]
    return Payload(
        run.id,
        f"{run.label}-{run.id}",
        run.studies[0] if run.studies else None,
        run.stages[-1].stage if run.stages else "run",
        tuple(dict.fromkeys([*run.studies, *(record.stage for record in run.stages)])),
        run.command,
        run.config | {"ldmlab": identity(run)},
        tuple(history(run)),
        summary(run),
        tables(run),
        tuple(artifact(run, record, makers, artifacts == "files") for record in kept),
        not run.unfinished,
    )


def identity(run: Run) -> dict[str, Any]:
    """Which run of ours it is, and the id of each of its stages (a list where a run has several of a kind)."""
    names = dict.fromkeys(record.stage for record in run.stages)
    ids = {name: [record.id for record in run.all(name)] for name in names}
    return {
        "id": run.id, "title": run.title, "command": run.command, "created": run.created, "choices": run.choices,
        "studies": list(run.studies), "machine": run.machine, "tuned": run.tuned, **first_stage_shape(run),
        "stages": {name: found[0] if len(found) == 1 else found for name, found in ids.items()},
    }  # fmt: skip


def first_stage_shape(run: Run) -> dict[str, int]:
    """f and c of the first stage, once it is scored."""
    record = run.stage("reconstructions")
    path = None if record is None or not record.done else record.folder / "facts.json"
    facts = read_json(path, run.command) if path is not None and path.is_file() else {}
    return {name: int(facts[name]) for name in ("f", "c") if name in facts}


# ---- history --------------------------------------------------------------------------------------------------------


def history(run: Run) -> list[HistoryRow]:
    """Stage after stage, up to the first that is not finished; of that one what its last checkpoint covers.

    A training that is interrupted writes what came after its checkpoint again, perhaps at other image counts.
    """
    scored = {s.scores.id: s for s in run.snapshots if s.scores is not None}
    found = []
    for record in run.stages:
        found += curves(record, record.stage if len(run.all(record.stage)) == 1 else f"{record.stage}-{record.id}")
        if not record.done:
            break
        if record is run.first_stage:
            found += reconstruction_row(record)
        if record.stage == "samples" and not run.all("scores"):
            found += sample_rows(record, None)
        if record.id in scored:  # scores say after how many images their samples were drawn
            found += scored_rows(scored[record.id])
    return found


def curves(record: StageRecord, group: str) -> list[HistoryRow]:
    """Every row of a stage's log that stays."""
    found = []
    for row in record.rows if record.done else covered(record):
        split = row.get("split", "train")
        values = {f"{group}/{split}/{name}": value for name, value in row.items() if name not in POSITION}
        place = {f"{group}/{name}": row[name] for name in ("images", "step", "time") if name in row}
        found.append(HistoryRow(group, place | values))
    return found


def covered(record: StageRecord) -> list[dict[str, Any]]:
    """The rows up to the stage's last checkpoint, which has the image count for its name."""
    images = [int(path.name) for path in (record.folder / "checkpoints").glob("[0-9]*")]
    return [row for row in record.rows if images and row["images"] <= max(images)]


def scored_rows(snapshot: Snapshot) -> list[HistoryRow]:
    """Scores over the images that the denoiser had seen, then pictures of the samples that were scored."""
    found = []
    if snapshot.images is not None and snapshot.scores is not None:
        found.append(HistoryRow("scores", {"scores/images": snapshot.images} | bounds("scores", snapshot.scores)))
    return found + (sample_rows(snapshot.samples, snapshot.images) if snapshot.samples is not None else [])


def bounds(group: str, record: StageRecord) -> dict[str, float]:
    """`scores/fid`, and its 95 % interval as `scores/fid_low` and `scores/fid_high`."""
    found: dict[str, float] = {}
    for key, score in record.scores.items():
        ends = {"": score.value, "_low": score.low, "_high": score.high}
        found |= {f"{group}/{key}{end}": value for end, value in ends.items() if value is not None}
    return found


def reconstruction_row(record: StageRecord) -> list[HistoryRow]:
    """The sheet of reconstructions, where the stage drew one."""
    sheet = record.folder / "reconstructions.png"
    if not sheet.is_file():
        return []
    said = f"originals, reconstructions, error × 4; {record.stage} {record.id}, {record.what}"
    return [HistoryRow("reconstructions", {"reconstructions/pictures": Media([said], partial(read_picture, sheet))})]


def sample_rows(record: StageRecord, images: int | None) -> list[HistoryRow]:
    """The first samples of a snapshot, and what they were drawn from. images: seen by the denoiser, where that is known."""
    if not record.done:
        return []
    drawn = record.pictures
    n = min(PICTURES, len(drawn))
    captions = [caption(record, i) for i in range(n)]
    values: dict[str, Any] = {} if images is None else {"samples/images": images}
    values["samples/pictures"] = Media(captions, lambda: [as_rgb(drawn.images_NHWC[i]) for i in range(n)])
    if drawn.conditions_MHWC is not None:
        m = min(n, len(drawn.conditions_MHWC))
        shown = [f"condition of {text}" for text in captions[:m]]
        values["samples/conditions"] = Media(shown, lambda: [drawn.conditions_MHWC[i] for i in range(m)])
    return [HistoryRow("samples", values)]


def caption(record: StageRecord, i: int) -> str:
    """ "image 3, seed 3, class star" """
    drawn = record.pictures
    said = [f"image {i}", f"seed {drawn.seeds[i]}" if drawn.seeds else ""]
    said += [f"class {drawn.class_name(drawn.labels[i])}" if drawn.labels else "", drawn.description(i)]
    return ", ".join(part for part in said if part)


def read_picture(path: Path) -> list[Any]:
    import numpy as np
    from PIL import Image

    return [np.asarray(Image.open(path).convert("RGB"))]


# ---- the run's end --------------------------------------------------------------------------------------------------


def summary(run: Run) -> dict[str, Any]:
    """Scores of the last snapshot and of the first stage with their intervals, protocol, state and cost."""
    last = run.last_scored.scores if run.last_scored is not None else None
    found: dict[str, Any] = {} if last is None else bounds("scores", last) | {"scores/protocol": last.card_short}
    if run.first_stage is not None and run.first_stage.scores:
        found |= bounds(run.first_stage.stage, run.first_stage)
    found |= {f"seconds/{r.stage}": r.seconds for r in run.stages if r.seconds is not None}
    return found | {"state": "unfinished" if run.unfinished else "finished"}


def tables(run: Run) -> dict[str, LoggedTable]:
    scored = [record for record in run.stages if record.scores]
    scores = [score_line(record, key, score) for record in scored for key, score in record.scores.items()]
    stages = [
        [r.stage, r.id, r.what, r.state, r.seconds, r.place, json.dumps(r.upstream, sort_keys=True)] for r in run.stages
    ]
    warned = [[r.stage, r.id, images, text] for r in run.stages for images, text in r.alarms]
    warned += [[r.stage, r.id, r.snapshot_images, text] for r in scored for text in r.warnings]
    found = {"tables/scores": LoggedTable(SCORE_COLUMNS, scores), "tables/stages": LoggedTable(STAGE_COLUMNS, stages)}
    found["tables/warnings"] = LoggedTable(["stage", "id", "images", "text"], warned)
    return {key: table for key, table in found.items() if table.rows}


def score_line(record: StageRecord, key: str, score: Estimate) -> list[Any]:
    """One metric of one snapshot under one protocol card; a line as long as SCORE_COLUMNS."""
    said = record.declared.get(key) or {}
    covers = score.covers or said.get("interval") or ""
    return [
        record.stage, record.id, record.snapshot_images, key, said.get("label") or key, said.get("unit") or "",
        said.get("better") or "", score.value, score.low, score.high, covers, score.method,
        record.card_short, json.dumps(record.protocol(key), sort_keys=True, default=str),
    ]  # fmt: skip


# ---- artifacts ------------------------------------------------------------------------------------------------------


def made_by(store: Path) -> dict[str, str]:
    """Stage id → id of the run that made it: of all recorded runs that have the stage, the earliest."""
    runs = [read_json(path, "") for path in store.glob("runs/*/run.json")]
    makers: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: (run.get("created") or "", run["id"])):
        for entry in run["stages"]:
            makers.setdefault(entry["id"], run["id"])
    return makers


def artifact(run: Run, record: StageRecord, makers: dict[str, str], files: bool) -> Artifact:
    """Its collection is named by what the stage is, its version by our id. Equal files give the same version everywhere."""
    seal = record.folder / "done.json"
    sealed = read_seal(seal).get("files", {}) if seal.is_file() else {}
    names = dict.fromkeys([*SMALL, *(sealed if files else ())])
    own = {name: record.folder / name for name in names if (record.folder / name).is_file()}
    facts: dict[str, Any] = {"id": record.id, "stage": record.stage, "what": record.what, "upstream": record.upstream}
    facts |= {"seconds": record.seconds, "place": record.place, "command": run.command}
    facts["sha256"] = {name: entry["sha256"] for name, entry in sealed.items()}
    name = re.sub(r"[^\w.-]", "_", f"{record.stage}-{record.folder.name.removesuffix(f'-{record.id}')}")[:128]
    made = makers.get(record.id, run.id) == run.id
    return Artifact(name, record.stage, (record.id,), made, facts, own)
