"""The process beside a command: reads the run's stages in the store while they grow and tells wandb of every new row.

`python -m ldmlab.reports.mirror.follow` gets one line of JSON on its standard input, and the end of the input when the command
has ended, however that came about. The command never waits for anything but, at its very end, for this process; and this
process ends itself some `tracking.finish_seconds` after the end of the input. The last line that it prints is for the user.
"""

import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import DataError, UserError
from ldmlab.reports.collect import read_run
from ldmlab.reports.mirror.offline import OfflineRun, Project, rows_sent
from ldmlab.reports.mirror.payload import Payload, made_by, payload
from ldmlab.reports.mirror.upload import end, finish_sync, start_sync, there

EVERY = 5.0  # seconds between two looks at the store
PATIENCE = 10.0  # seconds that W&B has each time to say how many rows it has
HANGS = 20.0  # seconds, beyond all others, after which this process is taken to hang


class Start(NamedTuple):
    """What a command says: the run's folder, its record as run.json will have it, and `tracking`."""

    folder: Path
    record: dict[str, Any]
    tracking: dict[str, Any]

    @property
    def online(self) -> bool:
        return bool(self.tracking["wandb"] == "online")

    @property
    def project(self) -> Project:
        return Project(self.tracking["project"], self.tracking["entity"])

    @property
    def seconds(self) -> float:
        return float(self.tracking["finish_seconds"])


def main() -> None:
    os.nice(10)
    start = Start(**json.loads(sys.stdin.readline()))
    start = start._replace(folder=Path(start.folder))
    follower = Follower(start)
    try:
        while not ended(EVERY):
            follower.look()
        watch(follower)
        print(follower.finish(), flush=True)
    except UserError as error:
        print(f"W&B: {error} {later(start)}", flush=True)
    except Exception as error:
        print(f"W&B stopped ({type(error).__name__}: {error}). {later(start)}", flush=True)
    finally:
        follower.stop()


class Follower:
    """One run of wandb. Online it begins once W&B has said how many rows it has; until then nothing is written."""

    def __init__(self, start: Start):
        self.start = start
        self.run: OfflineRun | None = None
        self.sync: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Writes the rows that are new in the store."""
        try:
            present = payload(read_run(self.start.folder, refreshed(self.start)), {}, "none")
            self._begin(present, PATIENCE)
        except (DataError, OSError):
            return  # a file between two states; the next look will read it
        except UserError as error:
            print(error, flush=True)
            return
        self._write(present)

    def _begin(self, present: Payload, seconds: float) -> None:
        if self.run is None:
            start, id = self.start, present.id
            first = (
                there(start.project, [present], seconds)[id].rows
                if start.online
                else rows_sent(start.folder, id, start.project)
            )
            self.run = OfflineRun(start.folder, start.project, first)

    def _write(self, present: Payload) -> None:
        assert self.run is not None
        before = self.run.folder
        self.run.update(present)
        if self.start.online and self.run.folder != before:
            assert self.run.folder is not None
            self.stop()
            self.sync = start_sync(self.run.folder, live=True)

    def finish(self) -> str:
        """Everything that the store has of the run; returns what to tell the user."""
        start, final = self.start, final_payload(self.start)
        self._begin(final, start.seconds)
        self._write(final)
        assert self.run is not None
        folder = self.run.close(final)
        if self.sync is None:
            return f"W&B offline: {folder}   send it: wandb sync {folder}"
        if finish_sync(self.sync, folder, final, start.project, start.seconds):
            return f"W&B: run {final.id} is in project {start.project.name}"
        return f"W&B did not take everything within {start.seconds:g} s (tracking.finish_seconds). {later(start)}"

    def stop(self) -> None:
        if self.sync is not None:
            end(self.sync)


def later(start: Start) -> str:
    return f"The store has every row. Send them: python src/report.py mirror=true runs='{start.folder.name}'"


def ended(seconds: float) -> bool:
    """Waits so long for the end of the input."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1 << 16)


def watch(follower: Follower) -> None:
    """Ends this process should wandb itself hang. (Answers and uploads that hang are ended before.)"""

    def give_up() -> None:
        print(f"W&B hangs. {later(follower.start)}", flush=True)
        follower.stop()
        os._exit(3)

    timer = threading.Timer(2 * follower.start.seconds + HANGS, give_up)
    timer.daemon = True
    timer.start()


def refreshed(start: Start) -> dict[str, Any]:
    """The record, each stage with its present state."""
    stages = []
    for entry in start.record["stages"]:
        done = (start.folder / entry["folder"] / "done.json").is_file()
        stages.append(entry | {"state": "done" if done else entry["state"]})
    return start.record | {"stages": stages}


def final_payload(start: Start) -> Payload:
    """The run as recorded once it is finished; as far as it came when the command ended early."""
    present = refreshed(start)
    whole = (start.folder / "run.json").is_file() and all(stage["state"] == "done" for stage in present["stages"])
    run = read_run(start.folder) if whole else read_run(start.folder, present)
    return payload(run, made_by(start.folder.parent.parent), start.tracking["artifacts"])


if __name__ == "__main__":
    main()
