"""`python src/report.py paper=true`: the paper's rows beside the runs of a store that were made for them, and whether they may be compared.

A run belongs to a row when it was made with `experiment=paper/<row>`. Its options are compared with that experiment's own, as they
are composed now: whatever was typed otherwise is named, and so are data of other sizes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldmlab import terminal
from ldmlab.config.complete import signature
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.reports.collect import read_json, read_run
from ldmlab.reports.paper_rows import LABELS, SOURCE, PaperRow, rows
from ldmlab.reports.publish import interval
from ldmlab.reports.records import Estimate, Run, flatten

GROUP = "paper/"
OURS = {
    "psnr": "superres_psnr",
    "ssim": "superres_ssim",
    "inpaint_fid": "inpainting_fid",
    "inpaint_fid_40_50": "inpainting_fid_40_50",
}
"""A score of a row: what ours is called where that is another name. (LPIPS of filled holes is not measured.)"""
DECIDING = ("data", "ae", "ldm", "cond", "objective", "sampler", "guidance", "eval", "metric", "latents.dtype")
NOT_DECIDING = (
    "data.root", "data.train.root", "data.val.root", "data.max_unreadable", "ae.seed", "ae.fit.keep_state", "ae.network.checkpointing",
    "ae.loss.perceptual.weights", "ldm.seed", "ldm.fit.snapshots", "ldm.fit.keep_state", "ldm.network.checkpointing",
    "eval.seed", "eval.batch_size", "eval.bootstrap", "eval.metrics", "eval.at", "eval.extractor.weights", "guidance.classifier.seed",
    "guidance.small_image.weights", "cond.conditioner.tokenizer",
)  # fmt: skip
"""Options that say where things lie, how often a thing is drawn anew, or what is scored beside."""
FILES = ("ae.weights", "ldm.weights", "ldm.start")  # given or not is what matters
TRAINED = {"ae.weights": ("ae.fit", "ae.loss", "ae.decoder_fit", "ae.latent_scale"), "ldm.weights": ("ldm.fit",)}
"""A file → options of the training that it takes the place of."""
NAMED = 3  # differences that are named


def text(store: Path) -> str:
    """The whole table. A store without such runs has the paper's column alone, and what to run."""
    made = runs_of(store)
    lines = [["table", "row", "score", "paper", "ours", "protocol equal?"]]
    for name, row in rows().items():
        for run in made.get(name, []):
            lines += run_lines(row, run)
        if name not in made:
            lines.append([row.table, row.line, "", row.scored, "not run", f"experiment={GROUP}{name}"])
    missing = len(rows()) - len(made)
    notes = [
        f"the paper: {SOURCE}; its models alone. Tables 13 and 14: digitised from Fig. 6 and 7.",
        *([f"{missing} rows not run. One of them: python src/train.py experiment={GROUP}… data.root=… (dry_run=true plans it without data)"]
          if missing else []),
        "equal as printed: our options are the row's, and the paper does not print those named. docs/guide/paper_experiments.md",
    ]  # fmt: skip
    return "\n".join([terminal.table(lines), *(f" {note}" for note in notes)])


def runs_of(store: Path) -> dict[str, list[Run]]:
    """Row → the runs of the store that were made for it, oldest first."""
    found: dict[str, list[Run]] = {}
    files = sorted((store / "runs").glob("*/run.json"), key=lambda file: str(read_json(file, "").get("created", "")))
    for file in files:
        name = str((read_json(file, "").get("choices") or {}).get("experiment", ""))
        if name.startswith(GROUP) and name.removeprefix(GROUP) in rows():
            found.setdefault(name.removeprefix(GROUP), []).append(read_run(file.parent))
    return found


def run_lines(row: PaperRow, run: Run) -> Iterator[list[str]]:
    """A line a score; what keeps the run apart stands in the first."""
    ours = scores_of(row, run)
    said = verdict(row, run)
    for n, (name, value) in enumerate(row.scores.items()):
        cell = "–" if name not in ours else interval(ours[name])
        first = [row.table, f"{row.line} ({run.id})"] if n == 0 else ["", ""]
        yield [*first, LABELS[name], value, cell, said if n == 0 else ""]


def scores_of(row: PaperRow, run: Run) -> dict[str, Estimate]:
    """Our scores by the row's names. The FID of super-resolution is to whichever split the run's reference is."""
    if set(row.scores) & {"rfid", "ris"}:
        stage = run.first_stage
        return dict(stage.scores) if stage is not None else {}
    last = run.last_scored
    found = dict(last.scores.scores) if last is not None and last.scores is not None else {}
    found |= {name: found[ours] for name, ours in OURS.items() if ours in found}
    if "fid_val" in row.scores and "fid" in found:
        found[f"fid_{run.config['eval']['reference']['split']}"] = found["fid"]
    return found


def verdict(row: PaperRow, run: Run) -> str:
    """ "equal as printed …", or "no: " and in what the run differs."""
    found = differences(row, run)
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return f"no: {', '.join(found[:NAMED])}{more}"
    return f"equal as printed, which leaves out {', '.join(row.unprinted)}" if row.unprinted else "equal as printed"


def differences(row: PaperRow, run: Run) -> list[str]:
    """What of a run is not as its row's experiment says: `sampler.steps 50 (500)`. Raises ConfigError where that composes no more."""
    try:
        cfg = load([f"experiment={GROUP}{row.name}"]).cfg
    except ConfigError as error:
        raise ConfigError(f"experiment={GROUP}{row.name} cannot be composed: {error}") from None
    wanted: Any = OmegaConf.to_container(cfg, resolve=True)
    reader = run.config["cond"]["conditioner"] or {}
    learnt = "tokenizer" in wanted["cond"]["conditioner"] and reader.get("tokenizer") is None
    words = ["a tokenizer of its own (BERT's)"] if learnt else []
    early = [f"scored after {share:.3g} of the training"] if (share := _scored_at(run.config)) < 1 else []
    return [*_sizes(run, wanted["planned"]), *_options(run.config, wanted), *early, *words]


def _sizes(run: Run, planned: Mapping[str, Any]) -> list[str]:
    """Numbers of pictures that are not those of the paper's data."""
    data = run.stage("data")
    manifest = (
        read_json(data.folder / "manifest.json", run.command) if data is not None and data.folder.is_dir() else {}
    )
    pairs = [(split, manifest.get(split), planned[split]) for split in ("train", "val")]
    return [
        f"{_number(ours)} {split} pictures ({_number(theirs)})"
        for split, ours, theirs in pairs
        if ours not in (None, theirs)
    ]


def _options(ours: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Options with another value, those of a first stage that the one imports and the other trains left out."""
    one, other = (_leaves(config) for config in (ours, wanted))
    skipped = [path for file, paths in TRAINED.items() if one.get(file) != other.get(file) for path in paths]
    split = ("eval.reference.split",) if "superres" in wanted["metric"] else ()
    return [
        f"{path} {_shown(one.get(path))} ({_shown(other.get(path))})"
        for path in dict.fromkeys([*one, *other])
        if one.get(path) != other.get(path) and path not in split and not _below(path, tuple(skipped))
        and not (path.startswith("metric.") and path.split(".")[1] not in wanted["metric"])
        and not (path not in one and _at_default(wanted, path))
    ]  # fmt: skip


def _at_default(config: Mapping[str, Any], path: str) -> bool:
    """Whether an option of a part has its default: a run from before there was the option did the same without it."""
    above, _, key = path.rpartition(".")
    node: Any = config
    for name in above.split("."):
        node = node[name]
    if not isinstance(node, Mapping) or "_target_" not in node:
        return False
    option = signature(node["_target_"], above)[0].get(key)
    return option is not None and option.default == node[key]


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """The deciding options of a configuration, a file's path as whether there is one."""
    found = {
        path: value
        for path, value in flatten(dict(config)).items()
        if _below(path, DECIDING) and not _below(path, NOT_DECIDING)
    }
    return {path: "a file" if path in FILES and value is not None else value for path, value in found.items()}


def _below(path: str, above: tuple[str, ...]) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in above)


def _scored_at(config: Mapping[str, Any]) -> float:
    """The last scored moment of the training, as a fraction of it."""
    last = float(max(config["eval"]["at"]))
    return last if last <= 1 or config["ldm"]["fit"] is None else last / float(config["ldm"]["fit"]["images"])


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return _number(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _number(value: Any) -> str:
    return terminal.number(int(value))
