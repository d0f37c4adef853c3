"""Reads finished and unfinished runs from the store into plain records; knows nothing of tables, figures or pages.

A run is `store/runs/<name>-<id>/run.json`. It lists its stages in the order of the plan, and each stage names its
folder relative to run.json. What a finished stage must have left is read strictly: a missing or damaged file is a
`DataError` that names the file and the command that makes it again. An unfinished stage is a record like the others,
with whatever it has written so far.
"""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import DataError

# Columns of metrics.jsonl that say where a row stands, not what was measured.
POSITION = ("images", "step", "split", "time")
FRACTIONS = ("precision", "recall", "label_agreement", "codebook_usage")


@dataclass(frozen=True)
class Score:
    """A measured number and its 95 % interval; `low` and `high` are None where the stage gave a number without one.

    method: how it was computed, one sentence. replicates: its bootstrap, drawn alike in every run of equal n and seed.
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str = field(default="", compare=False)
    replicates: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def overlaps(self, other: "Score") -> bool:
        """Whether the two intervals share a point. A score without an interval is a point."""
        low, high = (self.value if self.low is None else self.low), (self.value if self.high is None else self.high)
        other_low = other.value if other.low is None else other.low
        other_high = other.value if other.high is None else other.high
        return low <= other_high and other_low <= high


class Curve(NamedTuple):
    """One quantity over training: `images[i]` had been seen when `values[i]` was logged."""

    images: list[float]
    values: list[float]


@dataclass(frozen=True)
class Pictures:
    """The images of a samples stage. images_NHWC: uint8 [N, H, W, 3]; labels and seeds: N long, or empty where not
    recorded.
    """

    images_NHWC: Any
    labels: list[int]
    seeds: list[int]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"


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
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)  # the protocol card of its scores
    card_short: str = ""
    warnings: tuple[str, ...] = ()
    snapshot_images: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)  # card.json: versions, git, host, times
    config_text: str = ""

    @property
    def done(self) -> bool:
        return self.state in ("done", "ready")

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """What the health guards said while it was trained: after how many images, and what."""
        path = self.folder / "warnings.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [(int(row["images"]), str(row["text"])) for row in map(json.loads, lines)]

    @property
    def anchor(self) -> str:
        return f"stage-{self.stage}-{self.id}"

    def quantities(self) -> list[str]:
        """Names of everything logged, in order of first appearance."""
        names = dict.fromkeys(key for row in self.rows for key, value in row.items() if is_number(value))
        return [name for name in names if name not in POSITION]

    def curve(self, name: str, split: str) -> Curve:
        """`name` over training from the rows of one split; empty when it was never logged there."""
        rows = [row for row in self.rows if row.get("split", "train") == split and is_number(row.get(name))]
        return Curve([float(row["images"]) for row in rows], [float(row[name]) for row in rows])

    def reconstructions(self) -> Path | None:
        """The picture with rows original, reconstruction, error; None when the stage has not drawn one."""
        path = self.folder / "reconstructions.png"
        return path if path.is_file() else None

    @cached_property
    def pictures(self) -> Pictures:
        """Images and conditions of a samples stage. Raises DataError when a file is missing, damaged or of another
        length.
        """
        return read_pictures(self.folder, self.command)


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

    def choice(self, group: str) -> str | None:
        """The option chosen of a group; for runs from before choices were recorded, the word of their command."""
        words = [word.partition("=")[2] for word in self.command.split() if word.startswith(f"{group}=")]
        return self.choices.get(group) or next(reversed(words), None)

    @property
    def label(self) -> str:
        return self.name or self.id

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
        samples, scored = {record.id: record for record in self.all("samples")}, set()
        found = []
        for scores in self.all("scores"):
            upstream = [str(id_) for id_ in scores.upstream.values()]
            source = next((samples[id_] for id_ in upstream if id_ in samples), None)
            if source is None and len(samples) == 1 and len(self.all("scores")) == 1:
                source = next(iter(samples.values()))
            scored.add(source.id if source else None)
            found.append(Snapshot(scores.snapshot_images, source, scores))
        found += [Snapshot(None, record, None) for record in samples.values() if record.id not in scored]
        return sorted(found, key=lambda s: math.inf if s.images is None else s.images)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def again(command: str) -> str:
    return f"The same command makes what is missing: {command}" if command else "Run its command again."


def read_json(path: Path, command: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, and a finished stage leaves one. {again(command)}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it. {again(command)}") from None


def read_score(raw: Any, where: str, command: str) -> Score:
    """A score is a number, or {"value", "low", "high"} and perhaps "method" and "replicates"."""
    if is_number(raw):
        return Score(float(raw))
    if isinstance(raw, dict) and is_number(raw.get("value")):
        low, high = raw.get("low"), raw.get("high")
        if all(bound is None or is_number(bound) for bound in (low, high)):
            return Score(
                float(raw["value"]),
                None if low is None else float(low),
                None if high is None else float(high),
                str(raw.get("method") or ""),
                tuple(float(value) for value in raw.get("replicates") or ()),
            )
    raise DataError(f"{where}: a score is a number or {{value, low, high}}; got {raw!r}. {again(command)}")


def read_scores(raw: dict[str, Any], path: Path, command: str) -> dict[str, Score]:
    scores = {name: read_score(value, f"{path}: {name}", command) for name, value in raw.items()}
    for name in FRACTIONS:
        if name in scores and not 0 <= scores[name].value <= 1:
            raise DataError(
                f"{path}: {name} is a fraction between 0 and 1; got {scores[name].value!r}. {again(command)}"
            )
    return scores


def read_rows(path: Path, finished: bool, command: str) -> list[dict[str, Any]]:
    """metrics.jsonl in training order. After a restart from an older checkpoint the rows that were computed again
    replace the first ones.

    Rows at the same image count and split are one row. While a stage is still running its last line may be half
    written: it is left out. Anywhere else a broken line raises DataError with its number.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    by_split: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            position = row["images"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not finished:
                break
            raise DataError(f"{path}, line {number}, is damaged ({error!r}). {again(command)}") from None
        rows = by_split.setdefault(row.get("split", "train"), [])
        while rows and rows[-1]["images"] > position:
            rows.pop()
        if rows and rows[-1]["images"] == position:
            rows[-1].update(row)
        else:
            rows.append(row)
    return sorted((row for rows in by_split.values() for row in rows), key=lambda row: row["images"])


def read_pictures(folder: Path, command: str) -> Pictures:
    import numpy as np

    path = folder / "images.npy"
    conditions = read_json(folder / "conditions.json", command)
    try:
        images_NHWC = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, and a finished stage leaves one. {again(command)}") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it. {again(command)}") from None
    if images_NHWC.ndim != 4 or images_NHWC.shape[3] != 3 or images_NHWC.dtype != np.uint8:
        raise DataError(
            f"{path} must be uint8 [N, H, W, 3]; got {images_NHWC.dtype} {list(images_NHWC.shape)}. {again(command)}"
        )
    labels, seeds = conditions.get("label") or [], conditions.get("seed") or []
    for name, values in (("label", labels), ("seed", seeds)):
        if values and len(values) != len(images_NHWC):
            raise DataError(
                f"{folder / 'conditions.json'}: {name} has {len(values)} entries for {len(images_NHWC)} images. "
                f"{again(command)}"
            )
    names = [str(name) for name in conditions.get("class_names") or []]
    return Pictures(images_NHWC, [int(v) for v in labels], [int(v) for v in seeds], names)


def read_results(stage: str, folder: Path, command: str) -> dict[str, Any]:
    """The fields of a StageRecord that come from a finished stage's scores.json."""
    path = folder / "scores.json"
    raw = read_json(path, command)
    if not isinstance(raw, dict):
        raise DataError(f"{path} must hold a mapping; got {type(raw).__name__}. {again(command)}")
    if stage != "scores":
        numbers = {name: value for name, value in raw.items() if name not in ("card", "card_short", "warnings")}
    elif isinstance(raw.get("scores"), dict):
        numbers = raw["scores"]
    else:
        raise DataError(f"{path} has no 'scores'. {again(command)}")
    return {
        "scores": read_scores(numbers, path, command),
        "card": raw.get("card") or {},
        "card_short": raw.get("card_short") or "",
        "warnings": tuple(raw.get("warnings") or ()),
        "snapshot_images": raw.get("snapshot_images"),
    }


def read_stage(entry: dict[str, Any], run_folder: Path, command: str, scored: bool) -> StageRecord:
    """One entry of run.json with its folder. scored: whether the stage leaves a scores.json that is read."""
    path = run_folder / "run.json"
    for key in ("stage", "id", "folder", "state"):
        if not isinstance(entry.get(key), str):
            raise DataError(f"{path}: a stage has no '{key}' ({entry!r}). {again(command)}")
    stage, state = entry["stage"], entry["state"]
    folder = (run_folder / entry["folder"]).resolve()
    store = run_folder.resolve().parent.parent  # store/runs/<name>-<id>
    place = folder.relative_to(store).as_posix() if folder.is_relative_to(store) else entry["folder"]
    finished = state == "done"
    if finished and stage != "data" and not folder.is_dir():
        raise DataError(
            f"{folder}: run.json calls this {stage} stage done, but there is no such folder. {again(command)}"
        )
    imported = (folder / "imported.json").is_file()  # then nothing was trained, and there is no log of it
    if finished and stage == "denoiser" and not imported and not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder / 'metrics.jsonl'}: no such file, and a finished stage leaves one. {again(command)}")
    record = StageRecord(
        stage=stage,
        id=entry["id"],
        folder=folder,
        place=place,
        state=state,
        what=str(entry.get("what") or ""),
        seconds=float(entry["seconds"]) if is_number(entry.get("seconds")) and (finished or entry["seconds"]) else None,
        upstream=dict(entry.get("upstream") or {}),
        command=command,
        rows=read_rows(folder / "metrics.jsonl", finished, command),
        provenance=read_json(folder / "card.json", command) if (folder / "card.json").is_file() else {},
        config_text=(folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").is_file() else "",
        **(read_results(stage, folder, command) if finished and scored else {}),
    )
    if finished and stage == "samples":
        _ = record.pictures  # fails here, with the file's name, rather than in the middle of drawing
    return record


def read_run(folder: Path) -> Run:
    """One run. `folder` is the folder of a run.json. Raises DataError naming the file at fault and the way out."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. A run's folder is store/runs/<name>-<id>; "
            "python src/train.py … makes one and prints it."
        )
    raw = read_json(path, "")
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str) or not isinstance(raw.get("stages"), list):
        raise DataError(f"{path} is not a run: it needs 'id' and 'stages'. Run the command that made it again.")
    command = str(raw.get("command") or "")
    apart = any(isinstance(entry, dict) and entry.get("stage") == "reconstructions" for entry in raw["stages"])
    scored = ("scores", "reconstructions") if apart else ("scores", "autoencoder")
    return Run(
        id=raw["id"],
        name=str(raw.get("name") or ""),
        title=str(raw.get("title") or ""),
        command=command,
        created=str(raw.get("created") or ""),
        machine=dict(raw.get("machine") or {}),
        config=dict(raw.get("config") or {}),
        choices=dict(raw.get("choices") or {}),
        stages=tuple(read_stage(entry, Path(folder), command, entry.get("stage") in scored) for entry in raw["stages"]),
    )


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs in the order given, each once. Two runs of one name are told apart by their id."""
    if not folders:
        raise DataError(
            "No runs to report on. A run's folder is store/runs/<name>-<id>; python src/train.py … makes one."
        )
    from dataclasses import replace

    runs = list({run.id: run for run in map(read_run, folders)}.values())
    names = [run.label for run in runs]
    return [replace(run, name=f"{run.label}-{run.id[:6]}") if names.count(run.label) > 1 else run for run in runs]


def flatten(config: Any, path: str = "") -> dict[str, Any]:
    """{"ae.regulariser.weight": 1e-6, …}: the leaves of a nested configuration; lists are leaves."""
    if not isinstance(config, dict):
        return {path: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten(value, f"{path}.{key}" if path else str(key))
    return leaves


def varied(runs: list[Run]) -> dict[str, list[Any]]:
    """The options in which the runs differ, each with its value per run (None where a run does not have it)."""
    leaves = [flatten(run.config) for run in runs]
    options = dict.fromkeys(option for each in leaves for option in each)
    table = {option: [each.get(option) for each in leaves] for option in options}
    return {option: values for option, values in table.items() if any(value != values[0] for value in values)}
