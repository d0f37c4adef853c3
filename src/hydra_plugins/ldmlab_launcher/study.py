"""Hydra's grid of a sweep, with two things more: the list an experiment has for a study, and seeds that nest.

Hydra instantiates sweepers only from the `hydra_plugins` namespace. No `from __future__ import annotations` in this file: Hydra
executes it before it is in `sys.modules`, where dataclasses look names up.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore


@dataclass
class StudySweeperConf:
    """`params`: option → its values, as in Hydra's own sweeper. `of_study`: study → the params that an experiment gives it in
    the place of its own."""

    _target_: str = "hydra_plugins.ldmlab_launcher.study.StudySweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    of_study: dict[str, dict[str, str]] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf, provider="ldmlab")


class StudySweeper(BasicSweeper):
    """The product of the values, each cell once per combination of its seeds."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, of_study: dict[str, dict[str, str]]):
        super().__init__(max_batch_size, params)

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from ldmlab.config.compose import outside, params_of

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.params = params_of(config.hydra)
        self.outside = outside(config.hydra)

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        from ldmlab.errors import UserError
        from ldmlab.sweeping.cells import with_seeds

        try:
            return with_seeds(super().get_job_batch(), self.outside)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
