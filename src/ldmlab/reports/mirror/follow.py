"""The process beside a command: reads the run's stages in the store while they grow and tells wandb of every new row.

`python -m ldmlab.reports.mirror.follow` gets one line of JSON on its standard input (`Start`), and the end of the input when the
command has ended, however that came about. The command never waits for anything but, at its very end, for this process; and
this process ends itself `finish_seconds` after the end of the input.
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
from ldmlab.reports.mirror.offline import OfflineRun, finish_upload, start_upload
from ldmlab.reports.mirror.payload import Payload, made_by, payload
from ldmlab.reports.records import Run

EVERY = 5.0  # seconds between two looks at the store


class Start(NamedTuple):
    """What a command says: the run's folder, its record (as run.json will have it), and `tracking`."""

    folder: Path
    record: dict[str, Any]
    tracking: dict[str, Any]


def main() -> None:
    os.nice(10)
    os.environ["WANDB_QUIET"] = "true"
    said = json.loads(sys.stdin.readline())
    start = Start(Path(said["folder"]), said["record"], said["tracking"])
    try:
        print(follow(start, said.get("every", EVERY)), flush=True)
    except UserError as error:
        print(f"W&B: {error}", flush=True)
    except Exception as error:
        print(f"W&B stopped ({type(error).__name__}: {error}); {later(start.folder)}", flush=True)
        raise


def later(folder: Path) -> str:
    return f"the store has every row. Send it: python src/report.py mirror=true runs='{folder.name}'"


def follow(start: Start, every: float) -> str:
    """Until the end of the input. Returns what to tell the user."""
    tracking = start.tracking
    run = OfflineRun(start.folder, tracking["project"], tracking["entity"])
    log, upload = start.folder / "wandb" / "upload.log", None
    while not ended(every):
        seen = now(start)
        if seen is not None and run.update(seen) and tracking["wandb"] == "online":
            upload = restart(upload, run, log)
    watch(tracking["finish_seconds"], start.folder)
    final = final_payload(start)
    if run.update(final) and tracking["wandb"] == "online":
        upload = restart(upload, run, log)
    folder = run.close(final)
    if upload is None:
        return f"W&B offline: {folder}   send it: wandb sync {folder}"
    if finish_upload(upload, folder, tracking["finish_seconds"]):
        return f"W&B has run {final.id} of {tracking['project']}"
    return f"W&B did not take everything within {tracking['finish_seconds']:g} s ({log}); {later(start.folder)}"


def ended(seconds: float) -> bool:
    """Waits so long for the end of the input."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1 << 16)


def restart(upload: subprocess.Popen[bytes] | None, run: OfflineRun, log: Path) -> subprocess.Popen[bytes]:
    if upload is not None:
        upload.kill()
        upload.wait()
    assert run.folder is not None
    return start_upload(run.folder, True, log)


def watch(seconds: float, folder: Path) -> None:
    """Ends this process when wandb itself hangs. (An upload that hangs is ended before.)"""

    def end() -> None:
        print(f"W&B hangs; {later(folder)}", flush=True)
        os._exit(3)

    timer = threading.Timer(seconds + 20, end)
    timer.daemon = True
    timer.start()


def now(start: Start) -> Payload | None:
    """The run as the store has it, without its end; None while a file of it is between two states."""
    try:
        return payload(read_run(start.folder, refreshed(start)), {}, "none")
    except (DataError, OSError) as error:
        print(f"not yet: {error}", flush=True)
        return None


def refreshed(start: Start) -> dict[str, Any]:
    """The record, each stage with its present state."""
    stages = []
    for entry in start.record["stages"]:
        done = (start.folder / entry["folder"] / "done.json").is_file()
        stages.append(entry | {"state": "done" if done else entry["state"]})
    return start.record | {"stages": stages}


def final_payload(start: Start) -> Payload:
    """The finished run as recorded; as far as it came when the command ended early."""
    present = refreshed(start)
    recorded = (start.folder / "run.json").is_file() and all(stage["state"] != "unfinished" for stage in present["stages"])
    run: Run = read_run(start.folder) if recorded else read_run(start.folder, present)
    return payload(run, made_by(start.folder.parent.parent), start.tracking["artifacts"])


if __name__ == "__main__":
    main()
