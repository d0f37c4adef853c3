"""What the pages to explore show of runs, as plain values: a point a snapshot, its scores, costs and knobs, its pictures.

Scores, intervals and protocols are those of the tables: nothing is computed a second time. `Explored.told` is what the pages hold.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldmlab.reports import numbers, tables
from ldmlab.reports.collect import read_json
from ldmlab.reports.document import anchor_of
from ldmlab.reports.first_stage_cells import kind_of
from ldmlab.reports.numbers import MetricDeclaration
from ldmlab.reports.pictures import png_bytes, reduced, reduction, spread_over_classes, tile
from ldmlab.reports.records import Run, SampleSet, Snapshot, StageRecord, is_number
from ldmlab.reports.study_cells import Study, StudyCell, read_study, word

PICTURES = 16  # of each set of samples
FOLDER = "explore"  # of the pictures, beside the pages
Better = Literal["higher", "lower", ""]


class ExploredColumn(NamedTuple):
    """Something that points differ in, for an axis or a colour. better: of its values; "" for neither. words: values are words."""

    key: str
    title: str
    group: str
    better: Better = ""
    words: bool = False


class Value(NamedTuple):
    """A point's number with its 95 % interval (None without one), as it is printed, and how its protocol differs."""

    value: float
    low: float | None
    high: float | None
    text: str
    other: str = ""


Values = dict[str, Value | str]


@dataclass(frozen=True)
class ExploredPoint:
    """A denoiser after some training images, as it was sampled and scored; or a first stage alone. last: its run's last snapshot."""

    id: str
    cell: str
    run: Run
    place: str
    last: bool
    samples: StageRecord | None
    values: Mapping[str, Value | str]


@dataclass(frozen=True)
class Noise:
    """Pictures of sets that share seeds and conditions. keys: what each one is, names: the same in short; indices: by samples
    id, their places."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    indices: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Explored:
    study: Study
    columns: tuple[ExploredColumn, ...]
    points: tuple[ExploredPoint, ...]

    @cached_property
    def noises(self) -> list[Noise]:
        return same_noise({id_: pictures for id_, pictures in self.drawn.items() if pictures.seeds})

    @cached_property
    def drawn(self) -> dict[str, SampleSet]:
        """By samples id."""
        return {p.samples.id: p.samples.pictures for p in self.points if p.samples is not None}

    @property
    def axes(self) -> tuple[str, str, str]:
        """(x, y, colour) that a page begins with."""
        numeric = [column.key for column in self.columns if not column.words]
        scores = [column for column in self.columns if column.group == "scores" and column.better] or [
            column for column in self.columns if column.group == "first stage" and column.better
        ]
        y = next((c.key for c in scores if c.key in ("score.fid", "first.psnr")), (*scores, *self.columns)[0].key)
        knob = self.study.axis.knob if self.study.axis is not None else ""
        axis = {"steps": "cost.evaluations", "guidance": "knob.guidance"}.get(knob, "")
        wanted = [axis, "first.f", "cost.images", *(key for key in numeric if key != y), *(c.key for c in self.columns)]
        keys = {column.key for column in self.columns}
        x = next(key for key in wanted if key in keys)
        knobs = [column for column in self.columns if column.group == "knobs" and column.key != x]
        kinds = [column for column in self.columns if column.key == KIND.key and not self.study.cells]
        return x, y, next((c.key for c in (*kinds, *(c for c in knobs if c.words), *knobs)), "")

    def files(self) -> dict[str, bytes]:
        """A row of pictures for each set of samples."""
        pairs = [pair for noise in self.noises for pair in noise.indices.items()]
        return {f"{FOLDER}/{id_}.png": strip(self.drawn[id_], own) for id_, own in pairs}

    def told(self, out: Path, ids: frozenset[str]) -> dict[str, Any]:
        """What the pages' scripts read. out: their folder; ids: what a link into index.html can lead to."""
        x, y, colour = self.axes
        group = {id_: n for n, noise in enumerate(self.noises) for id_ in noise.indices}
        points = []
        for p in self.points:
            values = {key: v if isinstance(v, str) else v._asdict() for key, v in p.values.items()}
            own = {"id": p.id, "cell": p.cell, "last": p.last, "href": link(p, out, ids), "values": values}
            if p.samples is not None and (id_ := p.samples.id) in group:
                side = self.drawn[id_].images_NHWC.shape[2]
                own |= {"strip": f"{FOLDER}/{id_}.png", "noise": group[id_], "side": side}
            points.append(own)
        return {
            "columns": [column._asdict() for column in self.columns],
            "begin": {"x": x, "y": y, "colour": colour},
            "noises": [{"keys": noise.keys, "names": noise.names} for noise in self.noises],
            "points": points,
        }


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def link(point: ExploredPoint, out: Path, ids: frozenset[str]) -> str:
    """The run's own page where it and `out` lie in the same store; else where index.html speaks of it; "" where nowhere."""
    stage = point.run.stages[-1].folder
    store = stage.parent.parent.resolve()
    pages = sorted((store / "runs").glob(f"*{point.run.id}/index.html"))
    if pages and out.resolve().is_relative_to(store):
        return Path(os.path.relpath(pages[0], out.resolve())).as_posix()
    last = point.run.last_scored
    places = [point.place, last.scores.place if last is not None and last.scores is not None else ""]
    return next((f"index.html#{anchor}" for place in places if (anchor := anchor_of(place, ids))), "")


# ---- reading --------------------------------------------------------------------------------------------------------


def read_points(
    runs: list[Run], work: Mapping[str, tuple[int, float]] | None = None, labels: Mapping[str, str] | None = None
) -> Explored:
    """Every scored snapshot of the runs once; a run without one gives its first stage. work: (parameters, operations of
    training on one image) by denoiser id, where they are counted. labels: by run id, where a study has better ones.
    """
    study = read_study(runs)
    cells = {cell.run.id: cell for cell in study.cells}
    called = {run.id: run.label for run in runs} | {id_: cell.label for id_, cell in cells.items()} | dict(labels or {})
    found: dict[str, tuple[Run, Snapshot | None]] = {}
    for run in runs:
        scored = [s for s in run.snapshots if s.scores is not None and s.scores.done]
        for each in scored:
            found.setdefault(each.scores.id, (run, each))  # type: ignore[union-attr]
        first = run.first_stage
        if not scored and first is not None and first.done and first.scores:
            found.setdefault(first.id, (run, None))
    samples = Scoring("score", {id_: _compared(run, s) for id_, (run, s) in found.items() if s is not None})
    firsts = {run.id: first for run, _ in found.values() if (first := run.first_stage) is not None and first.done}
    rebuilt = Scoring("first", firsts)
    values: dict[str, Values] = {}
    for id_, (run, snapshot) in found.items():
        own = _knobs(cells[run.id], study) if run.id in cells else {}
        own = own or {"knob.ae": str(run.choice("ae"))}
        own |= samples.of(id_) | rebuilt.of(run.id)
        values[id_] = own | _shape(run) | _costs(run, snapshot, work or {})
    columns = _columns(values, samples.metrics, rebuilt.metrics)
    keys = {column.key for column in columns}
    points = [
        ExploredPoint(
            id_, called[run.id], run, _place(run, snapshot),
            snapshot is None or snapshot is run.last_scored, _drawn(snapshot),
            {key: value for key, value in values[id_].items() if key in keys},
        )
        for id_, (run, snapshot) in found.items()
    ]  # fmt: skip
    return Explored(study, tuple(columns), tuple(points))


def _drawn(snapshot: Snapshot | None) -> StageRecord | None:
    return snapshot.samples if snapshot is not None and snapshot.samples is not None and snapshot.samples.done else None


def _place(run: Run, snapshot: Snapshot | None) -> str:
    record = run.first_stage if snapshot is None else snapshot.scores
    return "" if record is None else record.place


def _compared(run: Run, snapshot: Snapshot) -> StageRecord:
    assert snapshot.scores is not None
    return StudyCell(run, snapshot.samples or snapshot.scores, snapshot.scores, {}).compared


@dataclass(frozen=True)
class Scoring:
    """Records of one kind of score, their metrics, and the protocol that most of them share."""

    prefix: str  # of the columns
    records: Mapping[str, StageRecord]

    @cached_property
    def metrics(self) -> list[MetricDeclaration]:
        return numbers.metrics_of(list(self.records.values()))

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        return {metric.key: numbers.common_card(list(self.records.values()), metric.key) for metric in self.metrics}

    def of(self, id_: str) -> Values:
        """The scores of one record in their shown units, each beside the common protocol; none for an unknown one."""
        found: Values = {}
        for metric in self.metrics if id_ in self.records else []:
            score = self.records[id_].scores.get(metric.key)
            if score is not None and math.isfinite(score.value):
                own = score.times(metric.factor)
                low, high = (None if end is None or not math.isfinite(end) else end for end in (own.low, own.high))
                other = tables.unlike(self.records[id_], metric.key, self.cards[metric.key])
                key = f"{self.prefix}.{metric.key}"
                found[key] = Value(own.value, low, high, numbers.said(score, metric), other)
        return found


def _knobs(cell: StudyCell, study: Study) -> Values:
    said = {knob: word(knob, value, study.knobs) for knob, value in cell.knobs.items()}
    return {
        f"knob.{knob}": Value(float(value), None, None, f"{value:g}") if is_number(value) else said[knob] or str(value)
        for knob, value in cell.knobs.items()
        if value is not None
    }


def _shape(run: Run) -> Values:
    """Kind, f and c of the first stage, and how many values its latent has."""
    record = run.stage("reconstructions")
    if record is None or not (record.folder / "facts.json").is_file():
        return {}
    facts = read_json(record.folder / "facts.json", record.command)
    shape = facts.get("latent_shape")
    found = {"f": facts.get("f"), "c": facts.get("c"), "elements": math.prod(shape) if shape else None}
    own: Values = {f"first.{key}": _plain(value) for key, value in found.items() if is_number(value)}
    return own | ({KIND.key: kind_of(facts)} if "regulariser" in facts else {})


def _plain(value: Any) -> Value:
    text = numbers.count(value) if float(value).is_integer() else numbers.plain(float(value))
    return Value(float(value), None, None, text)


def _costs(run: Run, snapshot: Snapshot | None, work: Mapping[str, tuple[int, float]]) -> Values:
    """What a snapshot cost to train, and its samples to draw."""
    if snapshot is None or snapshot.scores is None:
        stage = run.stage("autoencoder")
        return {"cost.seconds": _plain(stage.seconds)} if stage is not None and stage.seconds else {}
    denoiser, images, samples = run.stage("denoiser"), snapshot.images, snapshot.samples
    found: dict[str, float | None] = {"cost.images": images}
    if denoiser is not None and images:
        spent = [row["time"] for row in denoiser.rows if row["images"] <= images and is_number(row.get("time"))]
        parameters, flops = work.get(denoiser.id, (None, None))
        found |= {"cost.seconds": max(spent, default=None), "cost.parameters": parameters}
        found["cost.tflop"] = None if flops is None else flops * images / 1e12
    found["cost.evaluations"] = snapshot.scores.card.get("evaluations") or snapshot.scores.card.get("steps")
    n = snapshot.scores.card.get("samples")
    if samples is not None and samples.seconds and n:
        found["cost.sampling"] = 1e3 * samples.seconds / n
    return {key: _plain(value) for key, value in found.items() if is_number(value)}


COSTS = (
    ExploredColumn("cost.images", "training images", "costs", "lower"),
    ExploredColumn("cost.tflop", "training TFLOP, denoiser", "costs", "lower"),
    ExploredColumn("cost.seconds", "training time (s)", "costs", "lower"),
    ExploredColumn("cost.parameters", "parameters", "costs", "lower"),
    ExploredColumn("cost.evaluations", "network evaluations an image", "costs", "lower"),
    ExploredColumn("cost.sampling", "sampling an image (ms)", "costs", "lower"),
)
KIND = ExploredColumn("first.kind", "regulariser", "first stage", words=True)
SHAPE = (
    KIND,
    ExploredColumn("first.f", "down-sampling factor f", "first stage"),
    ExploredColumn("first.c", "latent channels c", "first stage"),
    ExploredColumn("first.elements", "latent values an image", "first stage", "lower"),
)


def _columns(
    values: Mapping[str, Values], metrics: list[MetricDeclaration], first: list[MetricDeclaration]
) -> list[ExploredColumn]:
    """Scores, then the first stage, costs and knobs; all but scores only where they differ among the points."""
    scores = [ExploredColumn(f"score.{m.key}", _title(m), "scores", m.better) for m in metrics]
    rebuilt = [ExploredColumn(f"first.{m.key}", f"first stage: {_title(m)}", "first stage", m.better) for m in first]
    others = [*SHAPE, *rebuilt, *COSTS]
    knobs = dict.fromkeys(key for own in values.values() for key in own if key.startswith("knob."))
    for key in knobs:
        spoken = any(isinstance(own.get(key), str) for own in values.values())
        others.append(ExploredColumn(key, key.removeprefix("knob.").replace("_", " "), "knobs", words=spoken))

    def differs(key: str) -> bool:
        found = {v if isinstance(v, str) else v.value for own in values.values() if (v := own.get(key)) is not None}
        return len(found) > 1

    return [*scores, *(column for column in others if differs(column.key))]


def _title(metric: MetricDeclaration) -> str:
    return f"{metric.label} ({metric.unit})" if metric.unit else metric.label


# ---- pictures -------------------------------------------------------------------------------------------------------


def same_noise(drawn: Mapping[str, SampleSet]) -> list[Noise]:
    """Sets of pictures in groups that have seeds and conditions in common, with the same columns in each group."""
    groups: list[tuple[dict[Any, None], list[str]]] = []
    for id_, pictures in drawn.items():
        shape = pictures.images_NHWC.shape[1:]
        keys = {(shape, pictures.key(i)): None for i in range(len(pictures))}
        for n, (common, members) in enumerate(groups):
            if shared := {key: None for key in common if key in keys}:
                groups[n] = (shared, [*members, id_])
                break
        else:
            groups.append((keys, [id_]))
    return [_noise({id_: drawn[id_] for id_ in members}, common) for common, members in groups]


def _noise(members: Mapping[str, SampleSet], common: Mapping[Any, None]) -> Noise:
    first = next(iter(members.values()))
    where = {id_: {pictures.key(i): i for i in reversed(range(len(pictures)))} for id_, pictures in members.items()}
    shared = [i for i in range(len(first)) if (first.images_NHWC.shape[1:], first.key(i)) in common]
    chosen = spread_over_classes(first, shared, PICTURES)
    keys = tuple(tile(first, i).caption.partition(" · ")[2] for i in chosen)
    names = tuple(first.class_name(first.labels[i]) if first.labels else f"image {i}" for i in chosen)
    return Noise(keys, names, {id_: tuple(index[first.key(i)] for i in chosen) for id_, index in where.items()})


def strip(pictures: SampleSet, indices: tuple[int, ...]) -> bytes:
    """Some of the pictures beside each other, without gaps; large ones averaged down."""
    import numpy as np

    factor = reduction(max(pictures.images_NHWC.shape[1:3]))
    return png_bytes(np.concatenate([reduced(pictures.images_NHWC[i], factor) for i in indices], axis=1))
