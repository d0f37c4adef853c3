"""A payload as wandb's offline folder. The only module that calls wandb for a run.

Every run is written offline and sent by `wandb sync` (`upload`), whether W&B is there or not: so the writer never meets a server,
and a server that hangs, fails or lies holds up `wandb sync` alone. W&B appends what it is sent: a folder begins with the row that
W&B does not have yet, and the step of a row is its number in the payload.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ldmlab.errors import UserError
from ldmlab.reports.mirror.payload import Artifact, HistoryRow, Media, Payload
from ldmlab.store.files import read_json, write_json, writing

CONTENTS = "mirror.json"  # beside the .wandb file: what the folder holds
SYNC_LOG = "sync.log"  # and what the upload said, once one was begun


class Project(NamedTuple):
    """entity: whose it is; None is the account's own."""

    name: str | None
    entity: str | None


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

    first: the number of rows that W&B has already and that are left out. update: writes what is new. close: summary, tables and
    artifacts; then earlier folders of the run that were never sent are removed, for this one holds all that they did.
    """

    def __init__(self, place: Path, project: Project, first: int = 0):
        self.place, self.project, self.first = place, project, first
        self.run: Any = None
        self.folder: Path | None = None
        self._sent: list[str] = []
        self._groups: set[str] = set()
        self._lock: FileLock | None = None

    def update(self, payload: Payload) -> None:
        """Writes the rows that the payload has gained. Where it has other rows than before, the folder is begun anew."""
        if self.run is None or self._sent != [_plain(row) for row in payload.rows[: len(self._sent)]]:
            self._begin(payload)
        for group in dict.fromkeys(row.group for row in payload.rows):
            if group not in self._groups:
                self._groups.add(group)
                self.run.define_metric(f"{group}/*", step_metric=f"{group}/images")
        for number, row in enumerate(payload.rows[len(self._sent) :], len(self._sent)):
            if number >= self.first:
                self.run.log({name: _media(value) for name, value in row.values.items()}, step=number)
            self._sent.append(_plain(row))

    def close(self, payload: Payload) -> Path:
        """The finished folder, with everything of the payload but the first rows."""
        self.update(payload)
        assert self.folder is not None and self._lock is not None
        self.run.config.update(payload.config, allow_val_change=True)
        self.run.summary.update(self._summary(payload))
        for artifact in payload.artifacts:
            self._artifact(artifact)
        self.run.finish(exit_code=0 if payload.whole else 1)
        self.run = None
        write_json(self.folder / CONTENTS, {"project": self.project, "first": self.first, "rows": len(payload.rows)})
        newest = {held(old)["project"]: old for old in earlier(self.place, payload.id) if was_sent(old)}
        for old in earlier(self.place, payload.id):
            if old != self.folder and old not in newest.values():
                shutil.rmtree(old, ignore_errors=True)
                shutil.rmtree(self._staging(old), ignore_errors=True)
        self._lock.release()
        return self.folder

    def _begin(self, payload: Payload) -> None:
        wandb = import_wandb()
        self._lock = self._lock or self._locked(payload.id)
        if self.run is not None:
            self.run.finish(exit_code=1)
        while list((self.place / "wandb").glob(f"*{time.strftime('%Y%m%d_%H%M%S')}-{payload.id}")):
            time.sleep(0.1)  # wandb names folders by the second
        settings = wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True,
            x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        self.run = wandb.init(
            project=self.project.name, entity=self.project.entity, id=payload.id, name=payload.name, group=payload.group,
            job_type=payload.job_type, tags=[tag[:64] for tag in payload.tags], notes=payload.notes, config=payload.config,
            mode="offline", dir=str(self.place), settings=settings, reinit="finish_previous",
        )  # fmt: skip
        self.folder = Path(self.run.settings.sync_dir)
        # what tables and artifacts hold lies beside the folder, not in the user's home
        os.environ["WANDB_DATA_DIR"] = str(self._staging(self.folder))
        self._sent, self._groups = [], set()

    def _locked(self, id: str) -> FileLock:
        lock = FileLock(self.place / "wandb" / f".{id}.lock")
        with writing(self.place / "wandb"):
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"run {id} is being mirrored by another process. Wait for it, or end its command."
                ) from None
        return lock

    def _staging(self, folder: Path) -> Path:
        return folder.parent / "staging" / folder.name

    def _summary(self, payload: Payload) -> dict[str, Any]:
        """The last value of everything, also of rows that this folder leaves out; the tables; the payload's own summary."""
        wandb = import_wandb()
        last: dict[str, Any] = {}
        for row in payload.rows[: self.first]:
            last |= row.values
        tables = {
            key: wandb.Table(table.columns, table.rows, allow_mixed_types=True) for key, table in payload.tables.items()
        }
        later = {name for row in payload.rows[self.first :] for name in row.values}
        return {name: _media(value) for name, value in last.items() if name not in later} | tables | payload.summary

    def _artifact(self, made: Artifact) -> None:
        wandb = import_wandb()
        artifact = wandb.Artifact(made.name, type=made.type, metadata=made.metadata)
        for inside, path in made.files.items():
            # without a copy: the store never changes a finished file
            artifact.add_file(str(path), name=inside, policy="immutable", skip_cache=True)
        if made.made:
            self.run.log_artifact(artifact, aliases=list(made.aliases))
        else:
            # `use_artifact` refuses offline runs, though this record of the log is how `wandb sync` is told of an input
            self.run._log_artifact(artifact, aliases=list(made.aliases), is_user_created=True, use_after_commit=True)


def _media(value: Any) -> Any:
    if not isinstance(value, Media):
        return value
    wandb = import_wandb()
    return [wandb.Image(image_HWC, caption=said) for image_HWC, said in zip(value.read(), value.captions, strict=True)]


def _plain(row: HistoryRow) -> str:
    """What is remembered of a row that was written; of pictures their captions. (A text: NaN does not equal itself.)"""
    return repr({name: value.captions if isinstance(value, Media) else value for name, value in row.values.items()})


# ---- folders that are there -----------------------------------------------------------------------------------------


def earlier(place: Path, id: str) -> list[Path]:
    """Offline folders of a run, oldest first."""
    return sorted((place / "wandb").glob(f"offline-run-*-{id}"))


def was_sent(folder: Path) -> bool:
    """Whether `wandb sync` has sent it to its end; it leaves a mark."""
    return any(folder.glob("run-*.wandb.synced"))


def held(folder: Path) -> dict[str, Any]:
    """{"project", "first", "rows"} of a finished folder; of one that was cut off, or is not ours, no rows of no project."""
    path = folder / CONTENTS
    said: dict[str, Any] = read_json(path) if path.is_file() else {"project": [None, None], "first": 0, "rows": 0}
    name, entity = said["project"]
    return {**said, "project": Project(name, entity)}


def rows_sent(place: Path, id: str, project: Project) -> int:
    """How many of a run's rows W&B has through offline folders that were sent to this project.

    Raises UserError where an upload did not end: how far it came, W&B alone knows, and it would append what comes again.
    """
    own = [folder for folder in earlier(place, id) if held(folder)["project"] in (project, Project(None, None))]
    broken = [folder for folder in own if (folder / SYNC_LOG).is_file() and not was_sent(folder)]
    if broken:
        raise UserError(
            f"an upload of run {id} did not end, so W&B may have a part of it, to which `wandb sync` would append all of it. Mirror it "
            f"online (it sends what is missing), or where W&B has nothing of it remove {broken[-1]}."
        )
    return max((held(folder)["rows"] for folder in own if was_sent(folder)), default=0)
