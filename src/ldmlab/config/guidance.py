"""The plain options of `guidance=`, a kind a dataclass (the declarations are those of `schema.py`)."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ldmlab.config.schema import At, Fit, MaybeNode, Node, Text
from ldmlab.ranges import Interval, Scale, Seed


@dataclass
class ClassifierGuidanceOptions:
    """Guidance by a classifier of noisy latents, trained in a stage of its own."""

    scale: Scale = MISSING
    interval: Interval | None = None  # of sigma / alpha where it pushes; null: everywhere
    network: Node = MISSING
    fit: Fit = field(default_factory=Fit)
    seed: Seed | None = None  # null: the run's


@dataclass
class AutoguidanceOptions:
    """Guidance away from a weaker model: this denoiser's snapshot, or the denoiser of another run."""

    scale: Scale = MISSING
    snapshot: At | None = None
    run: str | None = None


@dataclass
class ImageGuidanceOptions:
    """Guidance towards a picture: what of it is looked at is `transform`; null is all of it."""

    file: Text = MISSING
    scale: Scale = MISSING
    interval: Interval | None = None  # of sigma / alpha where it pulls; null: everywhere
    transform: MaybeNode = None


GUIDANCE: dict[str, type] = {
    "classifier": ClassifierGuidanceOptions,
    "auto": AutoguidanceOptions,
    "image": ImageGuidanceOptions,
}
"""The kinds without a `_target_`. A kind with one is a part; its constructor says its options."""
