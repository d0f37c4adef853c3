"""`python src/report.py mirror=true` and `to=wandb`: what they ask for, what they refuse, what they print."""

import os
from pathlib import Path
from typing import Any

from ldmlab.errors import ConfigError, UserError
from ldmlab.reports.collect import read_run
from ldmlab.reports.mirror.offline import OfflineRun, finish_upload, start_upload
from ldmlab.reports.mirror.payload import made_by, payload


def wanted(cfg: Any) -> bool:
    """Whether report.py is to write to W&B. Raises ConfigError for what does not go together."""
    if cfg.to not in (None, "wandb"):
        raise ConfigError(f"to={cfg.to} is for export.py. report.py takes to=wandb, or none for its own page.")
    if cfg.to and cfg.mirror:
        raise ConfigError("to=wandb writes a study's report and mirror=true its runs. Write two commands, mirror=true first.")
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
        raise ConfigError(f"WANDB_MODE={chosen}: mirror=true takes online or offline. Set it, or tracking=wandb tracking.wandb=….")
    return chosen


def mirror(cfg: Any, folders: list[Path]) -> str:
    """Each run as one offline folder, in its own folder or below out=; online they are sent, one after the other."""
    online, tracking, makers = mode(cfg) == "online", cfg.tracking, made_by(Path(cfg.store))
    if cfg.dry_run:
        return "\n".join(f" would mirror {folder.name}" for folder in folders)
    for folder in folders:
        if not os.access(folder if cfg.out is None else existing(Path(cfg.out)), os.W_OK):
            raise UserError(f"{folder} cannot be written, and W&B's files go there. Name another place: out=folder.")
    written = []
    for folder in folders:
        run = OfflineRun(folder if cfg.out is None else Path(cfg.out), tracking.project, tracking.entity)
        found = payload(read_run(folder), makers, tracking.artifacts)
        written.append(run.close(found))
        print(f" {folder.name}: {len(found.rows)} rows, {len(found.tables)} tables, {len(found.artifacts)} artifacts", flush=True)
    if not online:
        return "\n".join([f"\n {len(written)} runs for W&B. Send them:", *(f"   wandb sync {path}" for path in written)])
    left = [path for path in written if not send(path, tracking.finish_seconds)]
    if left:
        said = (left[0].parent / "upload.log").read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(
            f"W&B did not take {len(left)} of {len(written)} runs within tracking.finish_seconds={tracking.finish_seconds:g} each "
            f"({' '.join(said)}). Nothing is lost: the same command sends them again, or wandb sync {left[0]}"
        )
    return f"\n {len(written)} runs are in W&B project {tracking.project}"


def existing(path: Path) -> Path:
    """The nearest folder that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def send(path: Path, seconds: float) -> bool:
    log = path.parent / "upload.log"
    log.unlink(missing_ok=True)
    return finish_upload(start_upload(path, False, log), path, seconds)
