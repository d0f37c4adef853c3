"""All metrics from one pass: features of samples and reference in, scores with intervals and warnings out."""

import difflib
from dataclasses import dataclass, field

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.frechet import OPTIONS, fid_score
from ldmlab.metrics.inception_score import is_score
from ldmlab.metrics.intervals import Score, check_bootstrap, share_score
from ldmlab.metrics.kid import kid_score
from ldmlab.metrics.precision_recall import precision_recall_scores

METRICS = ("fid", "is", "kid", "precision", "recall")


@dataclass(frozen=True)
class Scores:
    """`values` by metric name, and what a reader must be told about them."""

    values: dict[str, Score] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Score:
        return self.values[name]

    def to_dict(self) -> dict[str, object]:
        """{"scores": {name: {...}}, "warnings": [...]}, ready for json."""
        return {
            "scores": {name: score.to_dict() for name, score in self.values.items()},
            "warnings": list(self.warnings),
        }


def check_metrics(metrics: list[str], option: str = "eval.metrics") -> None:
    """Raises ConfigError naming `option` for an empty list, a repeated or an unknown metric."""
    if not metrics:
        raise ConfigError(f"{option} is empty; choose from: {', '.join(METRICS)}.")
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            guess = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{option}: no metric {name!r}. {guess}Allowed: {', '.join(METRICS)}.")
        if metrics.count(name) > 1:
            raise ConfigError(f"{option}: {name!r} is named twice.")


def evaluate(
    samples: FeatureSet,
    reference: FeatureSet,
    metrics: list[str],
    bootstrap: int,
    seed: int,
    options: tuple[str, str] = OPTIONS,
) -> Scores:
    """Scores of generated images against reference images, features of the same extractor.

    `bootstrap` resamples, seeded by `seed`, give each score its 95 % interval. `options` decide how many images there
    are; FID's messages name them. Raises ConfigError for an unknown metric, for too few images and for IS without logits.
    """
    check_metrics(metrics)
    check_bootstrap(bootstrap)
    if samples.features.shape[1] != reference.features.shape[1]:
        widths = f"{samples.features.shape[1]} and {reference.features.shape[1]}"
        raise ValueError(f"features of different networks: {widths} numbers per image")
    values: dict[str, Score] = {}
    warnings: list[str] = []
    if "is" in metrics:
        if samples.logits is None:
            raise ConfigError(
                "eval.metrics: 'is' needs class logits, which this eval.extractor does not give; leave it out."
            )
        values["is"] = is_score(samples.logits, bootstrap, seed)
    if "precision" in metrics or "recall" in metrics:
        values.update(precision_recall_scores(samples.features, reference.features, bootstrap, seed))
    if "kid" in metrics:
        values["kid"] = kid_score(samples.features, reference.features, bootstrap, seed)
    if "fid" in metrics:
        values["fid"], more = fid_score(samples.features, reference.features, bootstrap, seed, options)
        warnings += more
    return Scores({name: values[name] for name in metrics}, warnings)


def label_agreement(
    logits: np.ndarray, labels: np.ndarray, same_classes: bool, bootstrap: int = 200, seed: int = 0
) -> Score:
    """Share of samples whose arg-max over logits [N, K] is the label [N] they were asked to be.

    `same_classes`: whether the extractor's classes are the data's (`extractor.classes_of_data`); otherwise the number
    would mean nothing and ConfigError is raised.
    """
    if not same_classes:
        raise ConfigError(
            "label agreement needs an eval.extractor whose classes are the data's own, such as eval=shapes."
        )
    if len(logits) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(logits)} logit rows for {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels span {labels.min()}…{labels.max()}, the extractor knows 0…{logits.shape[1] - 1}")
    return share_score(
        logits.argmax(axis=1) == labels, bootstrap, seed, "arg-max of the extractor's logits against the label"
    )
