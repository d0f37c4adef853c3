"""A payload as wandb's offline folder, and its upload. The only module that calls wandb for runs.

Every run is written offline first, in full and from its first row, and `wandb sync` sends the folder. So a run has one history
whatever happened on the way: sending it again replaces what the server has (the history goes to the same line numbers of the
same run), and a server that hangs, fails or lies holds up `wandb sync`, never the writer.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ldmlab.errors import UserError
from ldmlab.reports.mirror.payload import Artifact, Payload, Pictures, Row
from ldmlab.store.files import writing

MOST_PICTURES = 100  # wandb keeps 108 images of a row at most


def import_wandb() -> Any:
    """wandb, silent. Raises UserError when it is not installed."""
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError:
        raise UserError("Weights & Biases needs the package wandb: pip install wandb, or tracking=none.") from None
    return wandb


class OfflineRun:
    """One wandb run in `place/wandb/offline-run-<time>-<id>`, written as its payload grows.

    update: sends what is new. When a row that was sent is no longer in the store (a training that went on from an older
    checkpoint writes its rows again), a new folder is begun, from the first row. close: tables, summary and artifacts; then older
    folders of the same run are removed, for this one holds all that they did.
    """

    def __init__(self, place: Path, project: str, entity: str | None):
        self.place, self.project, self.entity = place, project, entity
        self.run: Any = None
        self.folder: Path | None = None
        self._sent: dict[tuple[str, str, float], str] = {}
        self._groups: set[str] = set()
        self._lock: FileLock | None = None

    def update(self, payload: Payload) -> bool:
        """Whether a new folder was begun."""
        rows = {row.key: row for row in payload.rows}
        stale = any(key not in rows or _plain(rows[key]) != sent for key, sent in self._sent.items())
        begun = self.run is None or stale
        if begun:
            self._begin(payload)
        for group in payload.groups:
            if group not in self._groups:
                self._groups.add(group)
                self.run.define_metric(f"{group}/*", step_metric=f"{group}/images")
        for key, row in rows.items():
            if key not in self._sent:
                self.run.log({name: _media(value) for name, value in row.values.items()})
                self._sent[key] = _plain(row)
        return begun

    def close(self, payload: Payload) -> Path:
        """The finished folder, with everything of the payload."""
        wandb = import_wandb()
        self.update(payload)
        self.run.config.update(payload.config, allow_val_change=True)
        if payload.tables:
            self.run.log({key: wandb.Table(table.columns, table.rows, allow_mixed_types=True) for key, table in payload.tables.items()})  # fmt: skip
        self.run.summary.update(payload.summary)
        for artifact in payload.artifacts:
            self._artifact(artifact)
        self.run.finish(exit_code=0 if payload.whole else 1)
        self.run = None
        assert self.folder is not None
        self._remove_older(payload.id)
        assert self._lock is not None
        self._lock.release()
        return self.folder

    def _begin(self, payload: Payload) -> None:
        wandb = import_wandb()
        if self._lock is None:
            self._lock = self._locked(payload.id)
        if self.run is not None:
            self.run.finish(exit_code=1)
            time.sleep(1.1)  # wandb names folders by the second
        # what tables and artifacts hold lies beside the run, so that the folder is whole
        os.environ["WANDB_DATA_DIR"] = str(self._staging(payload.id) / f"{time.time_ns()}")
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True,
            x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        self.run = wandb.init(
            project=self.project, entity=self.entity, id=payload.id, name=payload.name, group=payload.group,
            job_type=payload.job_type, tags=[tag[:64] for tag in payload.tags], notes=payload.notes, config=payload.config,
            mode="offline", dir=str(self.place), settings=settings, reinit="finish_previous",
        )  # fmt: skip
        self.folder = Path(self.run.settings.sync_dir)
        self._sent, self._groups = {}, set()

    def _locked(self, id: str) -> FileLock:
        lock = FileLock(self.place / "wandb" / f".{id}.lock")
        with writing(self.place / "wandb"):
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise UserError(f"run {id} is being mirrored by another process. Wait for it, or end its command.") from None
        return lock

    def _staging(self, id: str) -> Path:
        return self.place / "wandb" / "staging" / id

    def _artifact(self, made: Artifact) -> None:
        wandb = import_wandb()
        name = re.sub(r"[^\w.-]", "_", made.name)[:128]
        artifact = wandb.Artifact(name, type=made.type, metadata=made.metadata)
        for inside, path in made.files.items():
            # without a copy: the store never changes a finished file
            artifact.add_file(str(path), name=inside, policy="immutable", skip_cache=True)
        aliases = list(made.aliases)
        if made.made:
            self.run.log_artifact(artifact, aliases=aliases)
        else:
            # `use_artifact` refuses offline runs, though this record of the log is how `wandb sync` is told of an input
            self.run._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=True)

    def _remove_older(self, id: str) -> None:
        assert self.folder is not None
        own = Path(os.environ["WANDB_DATA_DIR"])
        for old in [*self.folder.parent.glob(f"offline-run-*-{id}"), *self._staging(id).glob("*")]:
            if old not in (self.folder, own):
                shutil.rmtree(old, ignore_errors=True)


def _media(value: Any) -> Any:
    if not isinstance(value, Pictures):
        return value
    wandb = import_wandb()
    shown = zip(value.read()[:MOST_PICTURES], value.captions, strict=False)
    return [wandb.Image(image_HWC, caption=caption) for image_HWC, caption in shown]


def _plain(row: Row) -> str:
    """What is remembered of a row that was sent; of pictures their captions. (A text: NaN does not equal itself.)"""
    return repr({name: value.captions if isinstance(value, Pictures) else value for name, value in row.values.items()})


# ---- upload ---------------------------------------------------------------------------------------------------------


def start_upload(folder: Path, live: bool, log: Path) -> subprocess.Popen[bytes]:
    """`wandb sync` of an offline folder, in a process of its own. live: while it is still written. log: where it talks to."""
    (file,) = folder.glob("run-*.wandb")
    for stale in folder.glob("run-*.wandb.sync*"):
        stale.unlink()  # wandb's marks that it was sent, perhaps to another project: all of it is sent
    words = [sys.executable, "-m", "wandb", "beta", "sync", "--yes", *(["--live"] if live else []), str(file)]
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_SILENT", "WANDB_MODE")}
    with log.open("ab") as out:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)


def finish_upload(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> bool:
    """Whether everything was sent within so many seconds; a process that needs longer is ended."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        process.kill()
        process.wait()
    return process.returncode == 0 and any(folder.glob("run-*.wandb.synced"))
