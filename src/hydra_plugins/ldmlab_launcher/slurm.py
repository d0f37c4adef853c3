"""Cells as jobs of a Slurm cluster, with the options of hydra-submitit-launcher: `hydra/launcher=submitit_slurm` (`ldmlab.sweeping.slurm`).

The command line puts this class in the place of the plugin's, whose jobs would not wait for stages that they share.
Hydra instantiates launchers only from the `hydra_plugins` namespace. No `from __future__ import annotations` in this file: Hydra executes
it before it is in `sys.modules`, where dataclasses look names up.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf


class SlurmCells(Launcher):
    """Takes the options of `hydra_plugins.hydra_submitit_launcher.config.SlurmQueueConf`."""

    def __init__(self, **params: Any) -> None:
        self.params = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in params.items()
        }

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from ldmlab.config.compose import outside
        from ldmlab.sweeping.study import run

        hydra = self.config.hydra
        jobs = [[*outside(hydra), *filter_overrides(list(overrides))] for overrides in job_overrides]
        script, study = os.path.abspath(sys.argv[0]), hydra.runtime.choices.get("sweeps")
        code = run(jobs, script, hydra.sweep.dir, study, 1, self.params)
        if code:
            sys.exit(code)
        return [JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=0) for words in jobs]
