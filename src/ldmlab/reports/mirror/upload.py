"""Sending offline folders: what W&B has of a run, and `wandb sync`, each in a process that can be ended.

`python -m ldmlab.reports.mirror.upload` asks and prints the answer as JSON: wandb's client tries again for minutes where a server
hangs or fails, so it runs where it can be stopped. And `wandb sync` calls a run sent whose artifacts the server never took, so
what is there is asked for afterwards too.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import UserError
from ldmlab.reports.mirror.offline import SYNC_LOG, Project, was_sent
from ldmlab.reports.mirror.payload import Payload

ROWS = """query LdmlabRows($entity: String, $project: String, $name: String!) {
  project(name: $project, entityName: $entity) { run(name: $name) { historyLineCount } }
}"""
ARTIFACT = """query LdmlabArtifact($entity: String, $project: String, $name: String!) {
  project(name: $project, entityName: $entity) { artifact(name: $name) { state } }
}"""
# of this process alone: how its own wandb behaves, and the service that it started
OWN = ("WANDB_SILENT", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_SERVICE")
CHECKS = (0.0, 2.0, 5.0)  # seconds before each look at what W&B has: it may take a moment to know
OTHERWISE = "Check WANDB_API_KEY or wandb login, try again later, or set WANDB_MODE=offline."


class There(NamedTuple):
    """What W&B has of a run. rows: of its history, 0 of a run that it does not know. missing: artifacts that it has not."""

    rows: int
    missing: list[str]


def there(project: Project, payloads: Iterable[Payload], seconds: float) -> dict[str, There]:
    """By run id. Raises UserError when W&B does not answer within so many seconds, or refuses."""
    wanted = {each.id: [f"{a.name}:{a.aliases[0]}" for a in each.artifacts] for each in payloads}
    words = [sys.executable, "-m", "ldmlab.reports.mirror.upload", json.dumps([*project, wanted])]
    process = start(words, subprocess.PIPE)
    try:
        out, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process)
        raise UserError(f"W&B did not answer within {seconds:g} s (tracking.finish_seconds). {OTHERWISE}") from None
    if process.returncode != 0:
        raise UserError(
            f"W&B: {(said.decode(errors='replace').strip().splitlines() or ['no answer'])[-1].rstrip('.')}. {OTHERWISE}"
        )
    return {id: There(*found) for id, found in json.loads(out).items()}


def start(words: list[str], out: int, log: Path | None = None) -> subprocess.Popen[bytes]:
    """In a session of its own, so that it ends with all that it starts."""
    environment = {k: v for k, v in os.environ.items() if k not in OWN}
    with contextlib.ExitStack() as stack:
        to = stack.enter_context(log.open("ab")) if log is not None else out
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=to, stderr=to, env=environment, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """At once, with all that it started; nothing to a process that has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_sync(folder: Path, live: bool) -> subprocess.Popen[bytes]:
    """`wandb sync` of an offline folder. live: while it is still written. What it says stands in `sync.log` of the folder."""
    (file,) = folder.glob("run-*.wandb")
    words = [sys.executable, "-m", "wandb", "beta", "sync", "--yes", *(["--live"] if live else []), str(file)]
    return start(words, subprocess.DEVNULL, folder / SYNC_LOG)


def finish_sync(
    process: subprocess.Popen[bytes], folder: Path, payload: Payload, project: Project, seconds: float
) -> bool:
    """Whether W&B has all of the payload, so many seconds from now; a process that needs longer is ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    end(process)
    for pause in CHECKS if process.returncode == 0 and was_sent(folder) else ():
        time.sleep(pause)
        with contextlib.suppress(UserError):
            if there(project, [payload], seconds)[payload.id] == There(len(payload.rows), []):
                return True
    for mark in folder.glob("run-*.wandb.sync*"):  # wandb's own, which says more than is true
        mark.unlink()
    return False


def main() -> None:
    """Prints the answer, or on standard error why there is none."""
    import wandb

    project, entity, wanted = json.loads(sys.argv[1])
    try:
        api = wandb.Api(timeout=10)
        entity = entity or api.default_entity

        def ask(query: str, name: str) -> dict[str, Any]:
            names = {"entity": entity, "project": project, "name": name}
            return api._service_api.execute_graphql(query, variables=names)["project"] or {}

        found = {}
        for id, artifacts in wanted.items():
            rows = int((ask(ROWS, id).get("run") or {}).get("historyLineCount") or 0)
            states = {name: (ask(ARTIFACT, name).get("artifact") or {}).get("state") for name in artifacts if rows}
            found[id] = [rows, [name for name, state in states.items() if state != "COMMITTED"]]
    except Exception as error:  # of every kind: the client's, the server's, of nonsense in an answer
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
