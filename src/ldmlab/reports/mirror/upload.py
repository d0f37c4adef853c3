"""Sending offline folders: how many rows W&B has of a run, and `wandb sync`, each in a process that can be ended.

`python -m ldmlab.reports.mirror.upload` asks for run ids and prints {id: rows} as JSON: wandb's client tries again for minutes where
a server hangs or fails, so it runs where it can be stopped.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from ldmlab.errors import UserError
from ldmlab.reports.mirror.offline import Project, was_sent

QUERY = """query LdmlabRows($entity: String, $project: String, $name: String!) {
  project(name: $project, entityName: $entity) { run(name: $name) { historyLineCount } }
}"""


def rows_there(project: Project, ids: list[str], seconds: float) -> dict[str, int]:
    """Rows of history that W&B has of each run, 0 of a run that it does not know.

    Raises UserError when it does not answer within so many seconds, or refuses.
    """
    words = [sys.executable, "-m", "ldmlab.reports.mirror.upload", json.dumps([project.name, project.entity, *ids])]
    process = start(words, subprocess.PIPE)
    try:
        out, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process)
        raise UserError(f"W&B did not answer within {seconds:g} s (tracking.finish_seconds). {OTHERWISE}") from None
    if process.returncode != 0:
        raise UserError(f"W&B: {(said.decode(errors='replace').strip().splitlines() or ['no answer'])[-1]}. {OTHERWISE}")
    return dict(json.loads(out))


OTHERWISE = "Check WANDB_API_KEY or wandb login, try again later, or set WANDB_MODE=offline."


def start(words: list[str], out: int, log: Path | None = None) -> subprocess.Popen[bytes]:
    """In a session of its own, so that it ends with all that it starts."""
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_SILENT", "WANDB_MODE", "WANDB_DATA_DIR")}
    with contextlib.ExitStack() as stack:
        to = stack.enter_context(log.open("ab")) if log is not None else out
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=to, stderr=to, env=environment, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start_sync(folder: Path, live: bool) -> subprocess.Popen[bytes]:
    """`wandb sync` of an offline folder. live: while it is still written. What it says stands in `sync.log` of the folder."""
    (file,) = folder.glob("run-*.wandb")
    words = [sys.executable, "-m", "wandb", "beta", "sync", "--yes", *(["--live"] if live else []), str(file)]
    return start(words, subprocess.DEVNULL, folder / "sync.log")


def finish_sync(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> bool:
    """Whether everything was sent within so many seconds; a process that needs longer is ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    end(process)
    return was_sent(folder)


def main() -> None:
    """Prints the answer, or on standard error why there is none."""
    import wandb

    project, entity, *ids = json.loads(sys.argv[1])
    try:
        api = wandb.Api(timeout=10)
        entity = entity or api.default_entity
        found = {}
        for id in ids:
            names = {"entity": entity, "project": project, "name": id}
            run = (api._service_api.execute_graphql(QUERY, variables=names)["project"] or {}).get("run") or {}
            found[id] = int(run.get("historyLineCount") or 0)
    except Exception as error:  # of every kind: the client's, the server's, of nonsense in an answer
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
