"""`python src/report.py mirror=true` and `to=wandb`: what they ask for, what they refuse, what they print."""

import os
from pathlib import Path
from typing import Any

from ldmlab.errors import ConfigError, UserError
from ldmlab.reports.collect import read_run
from ldmlab.reports.mirror.offline import SYNC_LOG, OfflineRun, Project, rows_sent
from ldmlab.reports.mirror.payload import made_by, payload
from ldmlab.reports.mirror.upload import finish_sync, start_sync, there


def wanted(cfg: Any) -> bool:
    """Whether report.py is to write to W&B. Raises ConfigError for what does not go together."""
    if cfg.to not in (None, "wandb"):
        raise ConfigError(f"to={cfg.to} is for export.py. report.py takes to=wandb, or none for its own page.")
    if cfg.to and cfg.mirror:
        raise ConfigError(
            "to=wandb writes a study's report and mirror=true its runs. Write two commands, mirror=true first."
        )
    if cfg.to and cfg.study is None:
        raise ConfigError("to=wandb writes the report of a study. Name it: study=compression_small.")
    return bool(cfg.to or cfg.mirror)


def write(cfg: Any, folders: list[Path]) -> str:
    """Does it for these run folders; returns what to print. Raises UserError when W&B did not take everything."""
    if cfg.mirror:
        return mirror(cfg, folders)
    from ldmlab.reports.mirror import report

    return report.write(cfg, folders)


def mode(cfg: Any) -> str:
    """offline or online: `tracking.wandb`, else wandb's own variable WANDB_MODE, else online."""
    chosen = cfg.tracking.wandb or os.environ.get("WANDB_MODE") or "online"
    if chosen not in ("online", "offline"):
        raise ConfigError(
            f"WANDB_MODE={chosen}: mirror=true takes online or offline. Set it, or tracking=wandb tracking.wandb=…."
        )
    return chosen


def mirror(cfg: Any, folders: list[Path]) -> str:
    """Each run as one offline folder, in its own folder or below out=, sent one after the other unless W&B is offline.

    Raises UserError before anything is written when a folder cannot be, or W&B does not answer; after the last run for those
    that it did not take.
    """
    online, tracking = mode(cfg) == "online", cfg.tracking
    if cfg.dry_run:
        return "\n".join(f" would mirror {folder.name}" for folder in folders)
    places = {folder: folder if cfg.out is None else Path(cfg.out) for folder in folders}
    for place in dict.fromkeys(places.values()):
        if not os.access(next(p for p in (place, *place.absolute().parents) if p.exists()), os.W_OK):
            raise UserError(f"{place} cannot be written, and W&B's files go there. Name another place: out=folder.")
    project, makers = Project(tracking.project, tracking.entity), made_by(Path(cfg.store))
    found = {folder: payload(read_run(folder), makers, tracking.artifacts) for folder in folders}
    before = there(project, found.values(), tracking.finish_seconds) if online else {}
    written: list[Path] = []
    left: list[Path] = []
    for folder, each in found.items():
        first = before[each.id].rows if online else rows_sent(places[folder], each.id, project)
        if first > len(each.rows):
            raise UserError(
                f"W&B has {first} rows of run {each.id}, and the store {len(each.rows)}: it is not a mirror of this run. Choose another "
                "project: tracking.project=…"
            )
        path = OfflineRun(places[folder], project, first).close(each)
        sent = online and finish_sync(start_sync(path, live=False), path, each, project, tracking.finish_seconds)
        (written if sent or not online else left).append(path)
        said = f"{len(each.rows) - first} of {len(each.rows)} rows, {len(each.tables)} tables, {len(each.artifacts)} artifacts"
        print(f" {folder.name}: {said}{'' if sent or not online else ', not taken'}", flush=True)
    if left:
        raise UserError(
            f"W&B did not take {len(left)} of {len(found)} runs within tracking.finish_seconds={tracking.finish_seconds:g} each "
            f"({left[0] / SYNC_LOG} says why). Nothing is lost: the same command sends what is missing."
        )
    if online:
        return f"\n {len(written)} runs are in W&B project {project.name}"
    return "\n".join(["\n Send them to W&B:", *(f"   wandb sync {path}" for path in written)])
