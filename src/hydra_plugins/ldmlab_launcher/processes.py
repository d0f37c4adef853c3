"""One operating-system process per job of a sweep, so that an exception, an OOM kill or a segfault in one leaves the others running.

Hydra instantiates launchers only from the `hydra_plugins` namespace. No `from __future__ import annotations` in this file: Hydra executes
it before it is in `sys.modules`, where dataclasses look names up.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher


@dataclass
class ProcessesConf:
    """`jobs`: how many run side by side; the option `parallel` decides it."""

    _target_: str = "hydra_plugins.ldmlab_launcher.processes.ProcessesLauncher"
    jobs: Any = "${parallel}"


ConfigStore.instance().store(group="hydra/launcher", name="processes", node=ProcessesConf, provider="ldmlab")


class ProcessesLauncher(Launcher):
    """Plans every job first, then runs `python <script> <overrides>` for each (`ldmlab.sweeping.study`)."""

    def __init__(self, jobs: Any = "auto") -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from ldmlab.config.compose import outside
        from ldmlab.sweeping.study import run

        hydra = self.config.hydra
        jobs = [[*outside(hydra), *filter_overrides(list(overrides))] for overrides in job_overrides]
        code = run(jobs, os.path.abspath(sys.argv[0]), hydra.sweep.dir, hydra.runtime.choices.get("sweeps"), self.jobs)
        if code:
            sys.exit(code)
        return [JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=0) for words in jobs]
