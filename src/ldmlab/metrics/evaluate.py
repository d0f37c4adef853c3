"""All metrics of one pass: inputs in, scores with intervals, declarations and warnings out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ldmlab.metrics.intervals import Score, check_bootstrap
from ldmlab.metrics.metric import Inputs, Metric, check_names


@dataclass(frozen=True)
class Scores:
    """`values` by score name, what a reader must know about them, what each metric declares of itself, and sets to look at."""

    values: dict[str, Score] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    metrics: dict[str, dict[str, object]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Score:
        return self.values[name]

    def to_dict(self) -> dict[str, object]:
        """{"scores": {name: {...}}, "warnings": [...], "metrics": {name: {label, better, unit, …, settings}}} for json."""
        return {
            "scores": {name: score.to_dict() for name, score in self.values.items()},
            "warnings": list(self.warnings),
            "metrics": self.metrics,
        }


def with_set(samples: Scores, other: Scores, key: str, title: str) -> Scores:
    """The samples' scores with those of another set as a row beside them (`metrics.beside`): <score>_<key>, called `title`.

    Rows that a metric has beside the other set are left out.
    """
    own = [name for name, said in other.metrics.items() if name in other.values and not said.get("beside")]
    declared = {f"{name}_{key}": other.metrics[name] | {"beside": title, "measure": name} for name in own}
    return replace(
        samples,
        values=samples.values | {f"{name}_{key}": other.values[name] for name in own},
        warnings=[*samples.warnings, *(f"{title}: {text}" for text in other.warnings if text not in samples.warnings)],
        metrics=samples.metrics | declared,
    )


def evaluate(metrics: Sequence[Metric], inputs: Inputs) -> Scores:
    """Every metric of one pass, in order. A score's name is its metric's, or begins with it.

    Raises ConfigError for no or a repeated metric, for too few images or resamples and for what a metric does not get.
    """
    names = [metric.name for metric in metrics]
    check_names(names, names)
    check_bootstrap(inputs.bootstrap)
    values: dict[str, Score] = {}
    warnings: list[str] = []
    pictures: dict[str, np.ndarray] = {}
    for metric in metrics:
        found = metric.compute(inputs)
        if foreign := [name for name in found.scores if not name.startswith(metric.name)]:
            raise ValueError(f"the metric {metric.name!r} gave scores of another name: {', '.join(foreign)}")
        values |= {name: replace(score, covers=metric.covers) for name, score in found.scores.items()}
        warnings += found.warnings
        pictures |= found.pictures
    declared = {name: said for metric in metrics for name, said in metric.declarations().items()}
    return Scores(values, warnings, declared, pictures)
