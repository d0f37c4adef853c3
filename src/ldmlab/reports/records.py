"""What reports know of runs, as plain records: stages, scores, curves, samples. Nothing here draws or reads tables.

A run is `store/runs/<name>-<id>/run.json`. It lists its stages in the order of the plan; `collect` reads it.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.metrics.protocol import NOT_PROTOCOL

# Columns of metrics.jsonl that say where a row stands, not what was measured.
POSITION = ("images", "step", "split", "time")
# Fields of a card that are settings of one metric alone, where scores.json does not declare its metrics
SETTINGS = {
    "fid": "fid", "is": "inception_score", "kid": "kid", "precision": "precision_recall", "recall": "precision_recall"
}  # fmt: skip


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Estimate:
    """A measured number and its 95 % interval; `low` and `high` are None where the stage gave a number without one.

    method: how it was computed, one sentence. replicates: its bootstrap, drawn alike in every run of equal n and seed.
    covers: what its interval covers, one sentence.
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str = field(default="", compare=False)
    replicates: tuple[float, ...] = field(default=(), compare=False, repr=False)
    covers: str = field(default="", compare=False)

    def times(self, factor: float) -> "Estimate":
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Estimate(self.value * factor, low, high)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; the point itself for a score without one."""
        return self.value if self.low is None else self.low, self.value if self.high is None else self.high

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the two intervals share a point. A score without an interval is a point."""
        (low, high), (other_low, other_high) = self.bounds, other.bounds
        return low <= other_high and other_low <= high


class Curve(NamedTuple):
    """One quantity over training: `images[i]` had been seen when `values[i]` was logged."""

    images: list[float]
    values: list[float]


@dataclass(frozen=True)
class SampleSet:
    """The images of a samples stage. images_NHWC: uint8 [N, H, W, C]; labels, seeds and descriptions: N long, or empty
    where not recorded; conditions_MHWC: the pictures that the first M samples were drawn from, or None.
    """

    images_NHWC: Any
    labels: list[int]
    seeds: list[int]
    class_names: list[str]
    descriptions: list[str] = field(default_factory=list)
    conditions_MHWC: Any = None

    def __len__(self) -> int:
        return len(self.images_NHWC)

    @property
    def described(self) -> bool:
        """Whether a sample has more to show of its condition than a class."""
        return bool(self.descriptions) or self.conditions_MHWC is not None

    def class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"

    def description(self, i: int) -> str:
        return self.descriptions[i] if self.descriptions else ""

    def condition(self, i: int) -> Any:
        """The picture that sample i was drawn from; None without one."""
        within = self.conditions_MHWC is not None and i < len(self.conditions_MHWC)
        return self.conditions_MHWC[i] if within else None

    def key(self, i: int) -> tuple[int, int | None, str]:
        """Seed and condition: equal in two sets, the pictures may be compared."""
        return self.seeds[i], self.labels[i] if self.labels else None, self.description(i)


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run as run.json lists it, with what its folder holds."""

    stage: str
    id: str
    folder: Path
    place: str  # the folder relative to the store, as it is printed
    state: str
    what: str
    seconds: float | None
    upstream: dict[str, Any]
    command: str  # of the run that lists it: what to type to make it again
    read_pictures: Callable[[Path, str], SampleSet] = field(repr=False, compare=False)  # (folder, command)
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Estimate] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)  # the protocol card of its scores
    card_short: str = ""
    warnings: tuple[str, ...] = ()
    snapshot_images: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  # card.json: versions, git, host, times
    config_text: str = ""
    declared: dict[str, dict[str, Any]] = field(default_factory=dict)  # label, better, unit and settings by metric
    section: dict[str, Any] = field(default_factory=dict)  # report.json: what the stage itself puts on the page
    floor: dict[str, Any] = field(
        default_factory=dict
    )  # floor.json: by logged quantity what the best linear denoiser reaches

    def protocol(self, metric: str) -> dict[str, Any]:
        """What must be equal before a number of this metric may stand beside another: the card without the settings of
        other metrics. So a metric that is added later leaves the others comparable.
        """
        shared = {k: v for k, v in self.card.items() if k not in (*NOT_PROTOCOL, *SETTINGS.values())}
        name = SETTINGS.get(metric, "")
        own = {name: self.card[name]} if name in self.card else {}
        return shared | (self.declared[metric].get("settings") or {} if metric in self.declared else own)

    @property
    def done(self) -> bool:
        return self.state in ("done", "ready")

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """The warnings of its health checks during training: (training images, text)."""
        path = self.folder / "warnings.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [(int(row["images"]), str(row["text"])) for row in map(json.loads, lines)]

    @property
    def cpu_seconds(self) -> float | None:
        """Of its card: not known of a stage that ran on a GPU, was resumed, or was made before cards had it."""
        spent: float | None = self.provenance.get("cpu_seconds")
        return spent

    @property
    def anchor(self) -> str:
        return f"stage-{self.stage}-{self.id}"

    @property
    def trained_images(self) -> int | None:
        """Images seen at its last logged row."""
        return max((row["images"] for row in self.rows), default=None)

    def quantities(self) -> list[str]:
        """Names of everything logged, in order of first appearance."""
        names = dict.fromkeys(key for row in self.rows for key, value in row.items() if is_number(value))
        return [name for name in names if name not in POSITION]

    def curve(self, name: str, split: str) -> Curve:
        """`name` over training from the rows of one split; empty when it was never logged there."""
        rows = [row for row in self.rows if row.get("split", "train") == split and is_number(row.get(name))]
        return Curve([float(row["images"]) for row in rows], [float(row[name]) for row in rows])

    @cached_property
    def pictures(self) -> SampleSet:
        """Images and conditions of a samples stage. Raises DataError when a file is missing, damaged or of another
        length.
        """
        return self.read_pictures(self.folder, self.command)


@dataclass(frozen=True)
class Snapshot:
    """The denoiser after `images` training images: what was drawn from it and how that scored (either may not exist
    yet).
    """

    images: int | None
    samples: StageRecord | None
    scores: StageRecord | None


@dataclass(frozen=True)
class Run:
    id: str
    name: str
    title: str
    command: str
    created: str
    machine: dict[str, Any]
    config: dict[str, Any]
    stages: tuple[StageRecord, ...]
    choices: dict[str, str] = field(default_factory=dict)  # what was chosen of each group: {"ldm": "unet_tiny", …}
    budget: dict[str, Any] = field(default_factory=dict)  # what ldm.budget chose, with what is unequal then; {} without
    tuned: dict[str, Any] = field(default_factory=dict)  # options that a search of its own chose: {"ldm.fit.lr": 0.001}
    studies: tuple[str, ...] = ()  # of which it is a cell

    def choice(self, group: str) -> str | None:
        """The option chosen of a group; for runs from before choices were recorded, the word of their command."""
        words = [word.partition("=")[2] for word in self.command.split() if word.startswith(f"{group}=")]
        return self.choices.get(group) or next(reversed(words), None)

    @property
    def label(self) -> str:
        return self.name or self.id

    @property
    def yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True, width=100)

    @property
    def unfinished(self) -> list[StageRecord]:
        return [stage for stage in self.stages if not stage.done]

    def all(self, stage: str) -> list[StageRecord]:
        return [record for record in self.stages if record.stage == stage]

    @property
    def first_stage(self) -> StageRecord | None:
        """The stage that scores the autoencoder: `reconstructions` when present, else the autoencoder's own."""
        return self.stage("reconstructions") or self.stage("autoencoder")

    def stage(self, stage: str) -> StageRecord | None:
        """The run's last stage of that kind, or None."""
        return next(reversed(self.all(stage)), None)

    @cached_property
    def snapshots(self) -> list[Snapshot]:
        """Scores joined to the samples they were computed from (through the upstream ids), earliest snapshot first."""
        samples, every = {record.id: record for record in self.all("samples")}, self.all("scores")
        found = []
        for scores in every:
            source = next((samples[id_] for id_ in map(str, scores.upstream.values()) if id_ in samples), None)
            if source is None and len(samples) == len(every) == 1:
                (source,) = samples.values()
            found.append(Snapshot(scores.snapshot_images, source, scores))
        scored = {s.samples.id for s in found if s.samples}
        found += [Snapshot(None, record, None) for record in samples.values() if record.id not in scored]
        return sorted(found, key=lambda s: math.inf if s.images is None else s.images)

    @property
    def last_scored(self) -> Snapshot | None:
        done = [s for s in self.snapshots if s.scores is not None and s.scores.done]
        return done[-1] if done else None


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """{"ae.regulariser.weight": 1e-6, …}: the leaves of a nested configuration; lists are leaves."""
    if not isinstance(config, dict):
        return {path: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten(value, f"{path}.{key}" if path else str(key))
    return leaves


def split_fields(mappings: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(leaves that all mappings share, leaves that differ with their value in each, None where one lacks it)."""
    import pandas as pd

    frame = pd.DataFrame([flatten(mapping) for mapping in mappings], dtype=object)
    frame = frame.astype(object).where(frame.notna(), None)
    differ = frame.map(repr).nunique() > 1
    shared = {str(name): frame[name].iloc[0] for name in frame.columns[~differ]}
    return shared, {str(name): frame[name].to_list() for name in frame.columns[differ]}


def varied(runs: list[Run]) -> dict[str, list[Any]]:
    """The options in which the runs differ, each with its value per run (None where a run does not have it)."""
    return split_fields([run.config for run in runs])[1]
