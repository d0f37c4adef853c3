"""What trained denoisers are and cost, counted from the configurations of their runs: parameters and operations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldmlab.errors import UserError
from ldmlab.pipeline import budget
from ldmlab.store.files import read_json


@dataclass(frozen=True)
class DataFacts:
    """What a network's shape needs of the data: how large the images are, and their classes."""

    resolution: int
    class_names: list[str]


@dataclass
class Counts:
    """By denoiser id: (parameters, training operations an image), or why they cannot be counted."""

    found: dict[str, tuple[int, float]]
    refused: dict[str, str]


def count(runs: list[Path]) -> Counts:
    """Counts each denoiser of the runs (folders of a run.json) once. Networks have no contents: no memory, seconds at most.

    A configuration that this version of the code cannot build is named in `refused`.
    """
    counts = Counts({}, {})
    for folder in runs:
        run = read_json(folder / "run.json")
        stages = {stage["stage"]: stage for stage in run["stages"]}
        if "denoiser" not in stages or "samples" not in stages or stages["samples"]["state"] != "done":
            continue
        id_ = stages["denoiser"]["id"]
        if id_ in counts.found or id_ in counts.refused:
            continue
        try:
            counts.found[id_] = _count(run["config"], folder / stages["samples"]["folder"])
        except (UserError, OmegaConfBaseException, HydraException) as error:  # written by another version of the code
            counts.refused[id_] = " ".join(str(error).splitlines()[0].split())
    return counts


def _count(config: dict[str, Any], samples: Path) -> tuple[int, float]:
    cfg = OmegaConf.create(config)
    classes = read_json(samples / "conditions.json").get("class_names") or []
    facts = DataFacts(int(cfg.data.resolution), list(classes))
    cost = budget.cost(cfg, facts, cfg.ldm.network.width)
    return cost.parameters, cost.flops_per_image
