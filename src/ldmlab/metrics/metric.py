"""The interface of metrics: what a metric declares, what one scoring pass gives it, and what it returns.

A metric is a dataclass of its settings, one file and one yaml in `conf/metric`. Everything else it declares on the class:

    name      its word in eval.metrics and in scores.json           label   what a table calls it
    needs     what a pass must have: features, logits, classes, pixels, pairs, conditions, conditions:<field>, text, stage:<name>,
              answers:<field> (what the extractor says of a field of the data)
    better    lower, higher or None                                 unit    that tables show it in, or ""
    interval  what its 95 % interval is over, in a few words        covers  the same as one sentence
    required  where False, a pass that cannot give what it needs leaves it out and says so

Scores are stored without a factor. A unit of "%" or "×10³" means that tables show the stored value times 100 or 1000.

`classes` means: logit k of the extractor is class k of the data.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from ldmlab.errors import ConfigError
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.intervals import SAMPLING, Score, check_bootstrap

OPTIONS = ("eval.samples", "eval.reference.images")  # what decides how many images there are
NEEDS = (
    "features",
    "logits",
    "classes",
    "pixels",
    "pairs",
    "conditions",
    "text",
)  # and conditions:<field>, stage:<name>, answers:<field>
WAYS_OUT = {
    "features": "choose an eval.extractor",
    "logits": "choose an eval.extractor that gives class logits, such as eval=inception",
    "classes": "choose an eval.extractor whose classes are the data's own, such as eval=shapes",
    "conditions": "choose a cond other than none",
    "text": "choose data with captions and cond=text",
    "answers": "choose an eval.extractor that learns it, such as eval=shapes",
}

Read = Callable[[list[int]], Tensor]  # rows → uint8 BHWC
Answers = Callable[[FeatureSet], Mapping[str, np.ndarray]]  # features → field: logits [N, K], or numbers [N, D]
Pairs = Callable[[list[int]], tuple[Tensor, Tensor]]  # rows → generated and true images of the same rows, uint8 BHWC
PART = 256  # samples whose conditions are read at a time
T = TypeVar("T")


class Conditions(Protocol):
    """The conditions that the samples were drawn for: `batch(rows)` gives {field: tensor or list}, one entry a row, for each of
    `fields`.
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    def batch(self, indices: list[int]) -> dict[str, Any]: ...


class Least(NamedTuple):
    """The fewest images of each side that a metric can be computed from."""

    samples: int
    reference: int = 0


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one scoring pass has. What it does not have is None, and no metric that needs it is computed.

    bootstrap: resamples behind each interval, seeded by `seed`. options: what decides the number of samples and of
    reference images, for messages. stages: folders of the stage results that metrics asked for, by stage name. answers: what the
    extractor says of fields of the data. conditioner: of the samples' denoiser, with shapes and no contents. features_of: batches
    of uint8 [B, H, W, C] → features by the extractor of this pass. distance: a perceptual distance, two float batches
    [B, 3, H, W] in [-1, 1] → [B]. device: for networks.
    """

    bootstrap: int
    seed: int
    samples: FeatureSet | None = None
    reference: FeatureSet | None = None
    read_samples: Read | None = None
    read_reference: Read | None = None
    pairs: Pairs | None = None
    conditions: Conditions | None = None
    class_names: tuple[str, ...] = ()
    classes_of_data: bool = False
    answers: Answers | None = None
    stages: Mapping[str, Path] = field(default_factory=dict)
    options: tuple[str, str] = OPTIONS
    conditioner: Any = None
    features_of: Callable[[Iterable[Tensor]], FeatureSet] | None = None
    distance: nn.Module | None = None
    device: Any = "cpu"
    shared: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """`make()`, computed at the first call with this key: what two metrics of one pass both look at."""
        if key not in self.shared:
            self.shared[key] = make()
        found: T = self.shared[key]
        return found

    def labels(self) -> np.ndarray | None:
        """The label that each sample was asked to have, int64 [N]; None where none was asked."""
        source, samples = self.conditions, self.samples
        if source is None or samples is None or "label" not in source.fields:
            return None
        rows = range(len(samples))

        def read() -> np.ndarray:
            parts = [source.batch(list(rows[i : i + PART]))["label"] for i in range(0, len(rows), PART)]
            return np.concatenate([np.asarray(part).reshape(-1) for part in parts])

        return self.once("labels", read)

    def both(self) -> tuple[FeatureSet, FeatureSet]:
        """Features of the samples and of the reference, of one extractor."""
        if self.samples is None or self.reference is None:
            raise ValueError("this scoring pass has no features of samples and reference")
        widths = self.samples.features.shape[1], self.reference.features.shape[1]
        if widths[0] != widths[1]:
            raise ValueError(f"features of different networks: {widths[0]} and {widths[1]} numbers per image")
        return self.samples, self.reference


@dataclass(frozen=True)
class Computed:
    """Scores by name, and what a reader must know about them. pictures: title → the first images of a set, uint8 [N, H, W, 3]."""

    scores: dict[str, Score] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """Base of every metric; the fields of a subclass are its settings."""

    name: ClassVar[str]
    label: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("features",)
    better: ClassVar[Literal["lower", "higher"] | None] = None
    unit: ClassVar[str] = ""
    interval: ClassVar[str] = "over images at this N"
    covers: ClassVar[str] = SAMPLING
    estimator: ClassVar[str] = ""  # what beside the settings decides the number

    required: bool = field(default=True, kw_only=True)

    def compute(self, inputs: Inputs) -> Computed:
        raise NotImplementedError

    def least(self, feature_dim: int | None = None) -> Least:
        """The fewest images that `compute` takes, where the extractor gives `feature_dim` numbers an image."""
        return Least(1)

    def settings(self) -> dict[str, object]:
        """Everything that decides the number: two scores of unequal settings may not stand in one column."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "required"}
        return {**chosen, **({"estimator": self.estimator} if self.estimator else {})}

    def declaration(self) -> dict[str, object]:
        """What tables, pages and trackers need to know, for json."""
        return {
            "label": self.label, "better": self.better, "unit": self.unit, "interval": self.interval,
            "covers": self.covers, "settings": self.settings(),
        }  # fmt: skip

    def declarations(self) -> dict[str, dict[str, object]]:
        """By score: of a metric that gives several, each with a label and a unit of its own."""
        return {self.name: self.declaration()}


def available(
    *,
    logits: bool,
    classes_of_data: bool,
    conditions: Collection[str] = (),
    answers: Collection[str] = (),
    pixels: bool = True,
    pairs: bool = False,
    stages: Iterable[str] = (),
) -> set[str]:
    """What a composition offers its metrics. conditions: names of the fields that its samples are conditioned on.
    answers: names of the fields that the extractor has learnt.
    """
    found = {
        "features",
        *(["logits"] if logits else []),
        *(["pixels"] if pixels else []),
        *(["pairs"] if pairs else []),
    }
    found |= {"classes"} if logits and classes_of_data else set()
    found |= {"conditions", *(f"conditions:{name}" for name in conditions)} if conditions else set()
    found |= {f"answers:{name}" for name in answers}
    found |= {"text"} if "caption" in conditions else set()
    return found | {f"stage:{name}" for name in stages}


def check(metrics: Sequence[Metric], available: Collection[str], option: str = "eval.metrics") -> list[Metric]:
    """The metrics that this composition can compute, in order; a metric with required=false may be left out.

    Raises ConfigError naming `option`, what is missing and the way out for a required one, and for no or a repeated metric.
    """
    check_names([metric.name for metric in metrics], [metric.name for metric in metrics], option)
    kept = []
    for metric in metrics:
        for need in metric.needs:
            if need.partition(":")[0] not in (*NEEDS, "stage", "answers"):
                raise ConfigError(
                    f"{option}: {metric.name!r} needs {need!r}. A need is one of: {', '.join(NEEDS)}, stage:<name>, answers:<field>."
                )
        missing = [need for need in metric.needs if need not in available]
        if not missing:
            kept.append(metric)
        elif metric.required:
            raise ConfigError(f"{option}: {_missing(metric.name, missing[0])}")
    return kept


def _missing(name: str, need: str) -> str:
    kind, _, what = need.partition(":")
    words = {
        "logits": "class logits, which this eval.extractor does not give",
        "classes": "an extractor whose classes are the data's, which this eval.extractor is not",
        "conditions": f"samples conditioned on {what or 'something'}, which these are not",
        "pairs": "a true image for each sample, which this scoring pass does not have",
        "answers": f"an extractor that has learnt the field {what!r}, which this eval.extractor has not",
        "stage": f"the result of the stage {what!r}, which this run does not make",
    }
    way = WAYS_OUT.get(kind)
    return f"{name!r} needs {words.get(kind, f'{kind}, which this run does not have')}; leave it out{f', or {way}' if way else ''}."


def check_names(names: Sequence[str], allowed: Sequence[str], option: str = "eval.metrics") -> None:
    """Raises ConfigError naming `option` for an empty list, a repeated or an unknown metric."""
    if not names:
        raise ConfigError(
            f"{option} is empty; choose from: {', '.join(allowed)}." if allowed else f"{option} is empty."
        )
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            guess = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{option}: no metric {name!r}. {guess}Allowed: {', '.join(allowed)}.")
        if list(names).count(name) > 1:
            raise ConfigError(f"{option}: {name!r} is named twice. Leave one of them out.")


def check_counts(
    metrics: Sequence[Metric],
    samples: int,
    reference: int,
    bootstrap: int,
    feature_dim: int | None = None,
    options: tuple[str, str] = OPTIONS,
) -> None:
    """Refuses, before anything starts, what a metric would refuse after hours: too few images or resamples.

    samples, reference: images of each side. options: what decides them. A metric with required=false refuses nothing.
    """
    check_bootstrap(bootstrap)
    for metric in metrics:
        least = metric.least(feature_dim)
        for option, count, fewest in zip(options, (samples, reference), least, strict=True):
            if metric.required and count < fewest:
                raise ConfigError(
                    f"{option}={count}: {metric.label} needs at least {fewest} images. "
                    f"Set {option}={fewest} or more, or leave {metric.name!r} out of eval.metrics."
                )
