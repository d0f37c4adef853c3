"""What trained denoisers are and cost, counted from the configurations of their runs: parameters and operations."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldmlab import build
from ldmlab.errors import ConfigError, UserError
from ldmlab.pipeline import budget
from ldmlab.pipeline.costs import flops_of
from ldmlab.store.files import read_json


class FieldFacts(NamedTuple):
    """A field of the data, and how many numbers a label or class map in it can be; None for others."""

    name: str
    values: int | None


@dataclass(frozen=True)
class DataFacts:
    """What a network's shape needs of the data: how large the images are, their classes and their fields."""

    resolution: int
    class_names: list[str]
    declared: list[FieldFacts]


@dataclass
class Counts:
    """By denoiser id: (parameters, training operations an image), or why they cannot be counted; before: operations of its first
    stage's training and of encoding its images.
    """

    found: dict[str, tuple[int, float]]
    refused: dict[str, str]
    before: dict[str, float] = field(default_factory=dict)


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
            counts.found[id_], counts.before[id_] = _count(run["config"], folder / stages["data"]["folder"])
        except (UserError, OmegaConfBaseException, HydraException) as error:  # written by another version of the code
            counts.refused[id_] = " ".join(str(error).splitlines()[0].split())
    return counts


def _count(config: dict[str, Any], data: Path) -> tuple[tuple[int, float], float]:
    cfg, manifest = cast(DictConfig, OmegaConf.create(config)), read_json(data / "manifest.json")
    if build.closed_form(cfg):
        raise ConfigError("it is fitted in closed form, and no training is there to count")
    fields = [FieldFacts(*pair) for pair in manifest["vocabulary"].items()]
    facts = DataFacts(int(manifest["resolution"]), list(manifest["class_names"]), fields)
    cost = budget.cost(cfg, facts, cfg.ldm.network.width)
    return (cost.parameters, cost.flops_per_image), _before(cfg, manifest)


def _before(cfg: DictConfig, manifest: dict[str, Any]) -> float:
    with build.shapes_only():
        ae = build.autoencoder(cfg)
    size = int(manifest["resolution"])
    image, z = torch.empty(1, 3, size, size, device="meta"), torch.empty(1, *ae.latent_shape(size), device="meta")
    encode, decode = flops_of(lambda: ae.moments(image)), flops_of(lambda: ae.decode(z))
    images = int(manifest["train"]) * (2 if manifest["flip"] else 1)
    return sum(budget.before_denoiser(cfg, ae, images, encode, decode).values())
