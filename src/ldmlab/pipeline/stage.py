"""The interface of a stage of a run: what determines its result, its row of the plan, its cost, and how it is made.

A stage is one class in one file. The order of stages is written nowhere: it follows from the upstream stages that each
declares (`Plan.order`). A stage from outside the package is a subclass and a yaml in a folder `stage/` (docs/guide/extending.md).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from ldmlab.ranges import Given
from ldmlab.store.store import Address

if TYPE_CHECKING:
    from ldmlab.pipeline.context import Context
    from ldmlab.pipeline.continuation import Continuation
    from ldmlab.pipeline.plan import Plan


@dataclass
class Row:
    """One line of the plan: what a stage is, and its work."""

    what: str
    images: int = 0  # of work
    flops: float = 0.0  # per image of work; 0 when nobody counts
    megabytes: float = 0.0  # left in the store


class Stage:
    """One stage of one run; `plan.stage(...)` makes each once.

    name: its folder in the store. version: grows when its code changes what it computes. due: the word of `until` at which a run
    wants it for its own sake; None: only where another stage stands on it. only_as_end: at later words it is wanted only where
    another stage stands on it. listed: whether the plan has a line for it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    due: ClassVar[str | None] = None
    only_as_end: ClassVar[bool] = False
    listed: ClassVar[bool] = True

    def __init__(self, plan: Annotated[Any, Given]):
        self.plan: Plan = plan

    @classmethod
    def of(cls, plan: Plan) -> list[Stage]:
        """The stages of this kind that the run has: none, one, or one a snapshot."""
        return [plan.stage(cls)]

    @property
    def cfg(self) -> DictConfig:
        return self.plan.resolved.cfg

    @property
    def label(self) -> str:
        """The readable half of the folder's name."""
        return self.name

    def own(self) -> dict[str, Any]:
        """What of the configuration decides its result, beside what it stands on."""
        raise NotImplementedError

    def upstream(self) -> dict[str, Stage | str]:
        """Role → the stage it stands on, or the id of something that is no stage (a file, a generated set)."""
        return {}

    @functools.cached_property
    def address(self) -> Address:
        """id = sha256(own options, upstream ids, version)."""
        known = self.plan.store.upstream_id
        ids = {role: on if isinstance(on, str) else known(on.address) for role, on in self.upstream().items()}
        return Address(self.name, self.label, self.version, {k: plain(v) for k, v in self.own().items()}, ids)

    @property
    def trains(self) -> bool:
        """Whether a network learns in it: `score.py` and `sample.py` refuse to make such a stage."""
        return False

    def check(self) -> None:
        """ConfigError for options that cannot be. Called before anything is built."""

    @property
    def continuation(self) -> Continuation | None:
        """The finished training that this one goes on from; None for a stage that never does."""
        return None

    def row(self) -> Row:
        """What it is and costs."""
        return Row(self.label)

    def on_card(self, role: str) -> dict[str, Any]:
        """What a protocol card says of it where a guidance needs it in this role."""
        return {role: self.address.id}

    def words(self) -> str:
        """What a row of the plan adds in brackets where this stage guides; "" for nothing."""
        return ""

    def forward_flops(self) -> float:
        """Of one forward pass of the network that it trains, counted on tensors without contents; 0 without one."""
        return 0.0

    def work(self, ctx: Context, folder: Path) -> float | None:
        """Write the result's files into `folder`; runs on all ranks. May return the seconds that earlier attempts spent too."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What its card.json says beside where and with what it was made."""
        return {}

    def make(self, ctx: Context) -> Path:
        """The finished folder, found or built."""
        return ctx.make(self.address, lambda folder: self.work(ctx, folder), self.facts)

    def load(self, ctx: Context) -> Any:
        """The finished result as other stages use it; made when it is not there."""
        return self.make(ctx)


def plain(node: Any) -> Any:
    """A config node as plain data."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


SINCE = {
    "norm_groups": 32,
    "norm_group_channels": None,
    "level_channels": None,
    "vector_mlp": True,
    "frequency_shift": 0,
    "zero": "level",
    "reads_linear": False,
}
"""Options that parts got after results lay in stores, and the value at which they change nothing: with it they are in no id."""


def deciding(part: Any) -> dict[str, Any]:
    """What of a part's options decides a result: all but what changes memory alone, and `SINCE` where nothing is changed."""
    found: dict[str, Any] = plain(part)
    unchanged = [name for name, value in SINCE.items() if found.get(name) == value]
    return {name: value for name, value in found.items() if name not in ("checkpointing", *unchanged)}


def trained(fit: Any) -> dict[str, Any]:
    """What of a training's budget decides a result, on the same terms: not what is kept, nor the optimiser of before there was a choice."""
    found: dict[str, Any] = plain(fit)
    found.pop("keep_state", None)
    if found["optimizer"] == "adamw":
        found.pop("optimizer")
    return found


def conditioning(cfg: DictConfig, made: Any) -> dict[str, Any]:
    """What of `cond` decides a trained denoiser: its options without what only samples know, one condition or several.

    made: the conditioner, or the composition of several, which knows the contents of files that it reads.
    """
    found: dict[str, Any] = plain(cfg.cond)
    parts, apart = found.pop("parts"), found.pop("apart")
    for name in ("label", "prompt"):
        found.pop(name)
    if parts is None:
        return {**found, "conditioner": with_contents(found["conditioner"], made)}
    for part, of_part in zip(parts.values(), made.parts, strict=True):
        part["conditioner"] = with_contents(part["conditioner"], of_part)
    if not apart:
        return {"parts": {name: part["conditioner"] for name, part in parts.items()}, "drop": found["drop"]}
    return {"parts": parts}


def with_contents(conditioner: dict[str, Any], made: Any) -> dict[str, Any]:
    """A conditioner's options with the hash of what it reads (`files`) in the place of the path of a file or folder."""
    parts = getattr(made, "parts", None)
    if parts is not None and "parts" in conditioner:
        pairs = zip(conditioner["parts"], parts, strict=True)
        return {**conditioner, "parts": [with_contents(*pair) for pair in pairs]}
    return {**conditioner, **getattr(made, "files", {})}


class SnapshotStage(Stage):
    """A stage that the run has once for each scored snapshot of the denoiser.

    images: training images that the snapshot has seen; 0 for an imported denoiser.
    """

    def __init__(self, plan: Annotated[Any, Given], images: Annotated[int, Given]):
        super().__init__(plan)
        self.images = images

    @classmethod
    def of(cls, plan: Plan) -> list[Stage]:
        return [plan.stage(cls, images) for images in plan.resolved.snapshots]
