"""One operating-system process per job of a sweep, so that an exception, an OOM kill or a segfault in one leaves the others running.

Hydra instantiates launchers only from the `hydra_plugins` namespace. No `from __future__ import annotations` in this file: Hydra executes
it before it is in `sys.modules`, where dataclasses look names up.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher


@dataclass
class ProcessesConf:
    """`jobs`: how many run side by side."""

    _target_: str = "hydra_plugins.ldmlab_launcher.processes.ProcessesLauncher"
    jobs: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="processes", node=ProcessesConf, provider="ldmlab")


class ProcessesLauncher(Launcher):
    """Checks every job's configuration first, then runs `python <script> <overrides>` for each; failures are listed at the end."""

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from ldmlab.config.compose import load
        from ldmlab.errors import UserError

        os.environ["LDMLAB_SWEEP_CHILD"] = "1"
        outside = [f"hydra.searchpath={list(self.config.hydra.searchpath)}"] if self.config.hydra.searchpath else []
        jobs = [[*outside, *filter_overrides(list(overrides))] for overrides in job_overrides]
        for words in jobs:
            try:
                load(words)
            except UserError as error:
                print(f"error: {' '.join(words)}: {error}", file=sys.stderr)
                sys.exit(1)
        logs = Path(self.config.hydra.sweep.dir).absolute()
        logs.mkdir(parents=True, exist_ok=True)

        def one(numbered: tuple[int, list[str]]) -> tuple[list[str], int, Path]:
            index, words = numbered
            log = logs / f"job-{index}.log"
            print(f" job {index}  {' '.join(words)}  → {log}", flush=True)
            with log.open("w") as file:
                done = subprocess.run(
                    [sys.executable, os.path.abspath(sys.argv[0]), *words], stdout=file, stderr=subprocess.STDOUT
                )
            print(
                f" job {index}  {'done' if done.returncode == 0 else f'failed with exit code {done.returncode}'}",
                flush=True,
            )
            return words, done.returncode, log

        with ThreadPoolExecutor(self.jobs) as pool:
            results = list(pool.map(one, enumerate(jobs, initial_job_idx)))
        study = self.config.hydra.runtime.choices.get("sweeps")
        _record(logs, study, results)
        failed = [(words, code, log) for words, code, log in results if code]
        for words, code, log in failed:
            print(f"error: {' '.join(words)} exited with {code}; see {log}", file=sys.stderr)
        if failed:
            print(
                f"{len(failed)} of {len(results)} jobs failed. The same command runs what is missing.", file=sys.stderr
            )
            _say_next(study, jobs[0])
            sys.exit(1)
        _say_next(study, jobs[0])
        return [
            JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=code) for words, code, _ in results
        ]


def _record(logs: Path, study: str | None, results: list[tuple[list[str], int, Path]]) -> None:
    """`jobs.json`: what the last sweep of this study ran, and how it ended. A report tells from it what is missing."""
    from ldmlab.store.files import write_json

    jobs = [{"words": words, "exit_code": code, "log": log.name} for words, code, log in results]
    write_json(logs / "jobs.json", {"study": study, "jobs": jobs})


def _say_next(study: str | None, words: list[str]) -> None:
    if study is not None:
        store = "".join(f" {shlex.quote(word)}" for word in words if word.startswith("store="))
        print(f" report  python src/report.py study={study}{store}", flush=True)
