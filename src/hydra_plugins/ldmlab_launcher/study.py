"""Hydra's grid of a sweep, with three things more: the list an experiment has for a study, grids beside the first, and seeds that nest.

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
    """`params`: option → its values, as in Hydra's own sweeper. `beside`: further grids of the same form, whose cells follow.
    `of_study`: study → the grid, or the list of grids, that an experiment gives it in the place of both."""

    _target_: str = "hydra_plugins.ldmlab_launcher.study.StudySweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    beside: list[dict[str, str]] = field(default_factory=list)
    of_study: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConf, provider="ldmlab")


class StudySweeper(BasicSweeper):
    """The product of each grid's values, each cell once per combination of its seeds."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None,
        beside: list[dict[str, str]],
        of_study: dict[str, Any],
    ):
        super().__init__(max_batch_size, params)

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        from ldmlab.config.compose import grids_of, outside

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.params, *self.beside = grids_of(config.hydra)
        self.outside = outside(config.hydra)

    def sweep(self, arguments: list[str]) -> Any:
        self.typed = arguments
        return super().sweep(arguments)

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        from ldmlab.errors import UserError
        from ldmlab.sweeping.cells import cells_beside, with_seeds

        jobs = [list(job) for job in super().get_job_batch()]
        if self.is_done():
            jobs += [job for grid in self.beside for job in cells_beside(grid, self.typed, self.params)]
        try:
            return with_seeds(jobs, self.outside)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
