"""Reads finished and unfinished runs from the store into records; knows nothing of tables, figures or pages.

Each stage of run.json names its folder relative to run.json. What a finished stage must have left is read strictly: a
missing or damaged file is a `DataError` that names the file and the command that makes it again. An unfinished stage is
a record like the others, with whatever it has written so far.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmlab.errors import DataError
from ldmlab.reports.records import Estimate, Run, SampleSet, StageRecord, is_number
from ldmlab.store import files

FRACTIONS = ("precision", "recall", "label_agreement", "codebook_usage")
LINEAR = {  # of facts.json: how each was computed
    "linear_psnr": "mean PSNR of principal components with the same f and c, of the same val images",
    "gain_over_linear": "PSNR less that of principal components with the same f and c",
}
BESIDE_SCORES = ("card", "card_short", "warnings", "metrics")  # of scores.json


def again(command: str) -> str:
    return f"The same command makes what is missing: {command}" if command else "Run its command again."


def sentences(command: str) -> tuple[str, str]:
    """What is said of a missing and of a damaged file, with the command that makes it again."""
    return f": no such file, and a finished stage leaves one. {again(command)}", f"Delete it. {again(command)}"


def read_json(path: Path, command: str) -> Any:
    return files.read_json(path, *sentences(command))


def read_arrays(path: Path, command: str) -> dict[str, Any]:
    return files.read_arrays(path, *sentences(command))


def read_score(raw: Any, where: str, command: str) -> Estimate:
    """A score is a number, or {"value", "low", "high"} and perhaps "method" and "replicates"."""
    if is_number(raw):
        return Estimate(float(raw))
    if isinstance(raw, dict) and is_number(raw.get("value")):
        low, high = raw.get("low"), raw.get("high")
        if all(bound is None or is_number(bound) for bound in (low, high)):
            low, high = (None if bound is None else float(bound) for bound in (low, high))
            replicates = tuple(map(float, raw.get("replicates") or ()))
            method, covers = (str(raw.get(name) or "") for name in ("method", "covers"))
            return Estimate(float(raw["value"]), low, high, method, replicates, covers)
    raise DataError(f"{where}: a score is a number or {{value, low, high}}; got {raw!r}. {again(command)}")


def read_scores(raw: dict[str, Any], path: Path, command: str) -> dict[str, Estimate]:
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


def read_images(path: Path, command: str) -> Any:
    """uint8 [N, H, W, C], C of the data (1, 3 or 4), mapped from disk. Raises DataError when it is missing, damaged or something else."""
    images_NHWC = files.read_array(path, *sentences(command))
    if images_NHWC.ndim != 4 or images_NHWC.shape[3] not in (1, 3, 4) or images_NHWC.dtype != "uint8":
        found = f"{images_NHWC.dtype} {list(images_NHWC.shape)}"
        raise DataError(
            f"{path} must be uint8 [N, H, W, 3]; got {found} (grey has 1 channel, opacity is a fourth). {again(command)}"
        )
    return images_NHWC


def read_samples(folder: Path, command: str) -> SampleSet:
    path = folder / "conditions.json"
    conditions = read_json(path, command)
    images_NHWC = read_images(folder / "images.npy", command)
    per_image = {name: conditions.get(name) or [] for name in ("label", "seed", "describe")}
    for name, values in per_image.items():
        if values and len(values) != len(images_NHWC):
            many = f"{name} has {len(values)} entries for {len(images_NHWC)} images"
            raise DataError(f"{path}: {many}. {again(command)}")
    pictures = folder / "conditions-pictures.npy"
    return SampleSet(
        images_NHWC,
        [int(v) for v in per_image["label"]],
        [int(v) for v in per_image["seed"]],
        [str(name) for name in conditions.get("class_names") or []],
        [str(text) for text in per_image["describe"]],
        read_images(pictures, command) if pictures.is_file() else None,
    )


def read_results(stage: str, folder: Path, command: str) -> dict[str, Any]:
    """The fields of a StageRecord that come from a finished stage's scores.json."""
    path = folder / "scores.json"
    raw = read_json(path, command)
    if not isinstance(raw, dict):
        raise DataError(f"{path} must hold a mapping; got {type(raw).__name__}. {again(command)}")
    if stage != "scores":
        numbers = {name: value for name, value in raw.items() if name not in BESIDE_SCORES}
    elif isinstance(raw.get("scores"), dict):
        numbers = raw["scores"]
    else:
        raise DataError(f"{path} has no 'scores'. {again(command)}")
    return {
        "scores": read_scores(numbers, path, command) | read_linear(folder / "facts.json", command),
        "card": raw.get("card") or {},
        "card_short": raw.get("card_short") or "",
        "warnings": tuple(raw.get("warnings") or ()),
        "declared": raw.get("metrics") or {},
        "snapshot_images": raw.get("snapshot_images"),
    }


def read_linear(path: Path, command: str) -> dict[str, Estimate]:
    """From facts.json of a first stage: PSNR of a linear one with equal f and c, and the gain over it, to 1e-6 dB."""
    facts = read_json(path, command) if path.is_file() else {}
    found = {key: facts[key] for key in LINEAR if facts.get(key) is not None}
    return {key: Estimate(round(float(value), 6), method=LINEAR[key]) for key, value in found.items()}


def read_section(folder: Path, command: str) -> dict[str, Any]:
    """report.json: what a stage puts on the page itself, {"title", "text", "table": {"columns", "rows"}, "pictures"}.

    Raises DataError when a row of its table is not as long as the columns, or a picture is not in the folder.
    """
    path = folder / "report.json"
    if not path.is_file():
        return {}
    section = read_json(path, command)
    table = section.get("table") or {"columns": [], "rows": []} if isinstance(section, dict) else {}
    if not {"columns", "rows"} <= set(table) or any(len(row) != len(table["columns"]) for row in table["rows"]):
        raise DataError(
            f"{path}: 'table' needs 'columns' and 'rows', each row as long as the columns. {again(command)}"
        )
    for name in section.get("pictures") or ():
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"{path}: pictures: {name!r} is not a file of {folder}. {again(command)}")
    return section


def read_stage(entry: dict[str, Any], run_folder: Path, command: str, scored: bool) -> StageRecord:
    """One entry of run.json with its folder. scored: whether the stage leaves a scores.json that is read."""
    path = run_folder / "run.json"
    for key in ("stage", "id", "folder", "state"):
        if not isinstance(entry.get(key), str):
            raise DataError(f"{path}: a stage has no '{key}' ({entry!r}). {again(command)}")
    stage, finished = entry["stage"], entry["state"] == "done"
    folder = (run_folder / entry["folder"]).resolve()
    store = run_folder.resolve().parent.parent  # store/runs/<name>-<id>
    if finished and stage != "data" and not folder.is_dir():
        lost = f"{folder}: run.json calls this {stage} stage done, but there is no such folder."
        raise DataError(f"{lost} {again(command)}")
    untrained = any((folder / name).is_file() for name in ("imported.json", "gaussian.json"))  # so that there is no log
    if finished and stage == "denoiser" and not untrained and not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder / 'metrics.jsonl'}: no such file, and a finished stage leaves one. {again(command)}")
    seconds: Any = entry.get("seconds")
    config = folder / "config.yaml"
    record = StageRecord(
        stage=stage,
        id=entry["id"],
        folder=folder,
        place=folder.relative_to(store).as_posix() if folder.is_relative_to(store) else entry["folder"],
        state=entry["state"],
        what=str(entry.get("what") or ""),
        seconds=float(seconds) if is_number(seconds) and (finished or seconds) else None,
        upstream=dict(entry.get("upstream") or {}),
        command=command,
        read_pictures=read_samples,
        rows=read_rows(folder / "metrics.jsonl", finished, command),
        provenance=read_json(folder / "card.json", command) if (folder / "card.json").is_file() else {},
        config_text=config.read_text(encoding="utf-8") if config.is_file() else "",
        section=read_section(folder, command),
        floor=read_json(folder / "floor.json", command) if (folder / "floor.json").is_file() else {},
        **(read_results(stage, folder, command) if finished and scored else {}),
    )
    if finished and stage == "samples":
        _ = record.pictures  # fails here, with the file's name, rather than in the middle of drawing
    return record


def read_run(folder: Path, record: dict[str, Any] | None = None) -> Run:
    """One run. `folder` is the folder of a run.json; record: what it will hold, of a run that is still going on. Raises
    DataError naming the file at fault and the way out.
    """
    path = Path(folder) / "run.json"
    if record is None and not path.is_file():
        raise DataError(
            f"{path}: no such file. A run's folder is store/runs/<name>-<id>; "
            "python src/train.py … makes one and prints it."
        )
    raw = read_json(path, "") if record is None else record
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
        budget=dict(raw.get("budget") or {}),
        tuned=dict(raw.get("tuned") or {}),
        studies=tuple(map(str, raw.get("studies") or ())),
        stages=tuple(read_stage(entry, Path(folder), command, entry.get("stage") in scored) for entry in raw["stages"]),
    )


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs in the order given, each once. Runs of equal name get their id as a suffix."""
    if not folders:
        raise DataError(
            "No runs to report on. A run's folder is store/runs/<name>-<id>; python src/train.py … makes one."
        )
    runs = list({run.id: run for run in map(read_run, folders)}.values())
    names = [run.label for run in runs]
    return [replace(run, name=f"{run.label}-{run.id[:6]}") if names.count(run.label) > 1 else run for run in runs]
