"""Label agreement: the share of samples that a classifier of the data's own classes assigns to the class they were sampled for.

Shape letters: N images, K classes.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import Score, share_score
from ldmlab.metrics.metric import Computed, Inputs, Metric


@dataclass(frozen=True)
class LabelAgreement(Metric):
    """Share of class-conditional samples whose arg-max is their label."""

    name: ClassVar[str] = "label_agreement"
    label: ClassVar[str] = "label agreement"
    needs: ClassVar[tuple[str, ...]] = ("logits", "classes", "conditions:label")
    better: ClassVar[Literal["lower", "higher"] | None] = "higher"
    unit: ClassVar[str] = "%"
    covers: ClassVar[str] = "the share over other samples with labels drawn in the same way"

    def compute(self, inputs: Inputs) -> Computed:
        label_N = inputs.labels()
        if inputs.samples is None or inputs.samples.logits is None or label_N is None:
            raise ValueError("label agreement needs logits and labels")
        logits = inputs.samples.logits
        score = label_agreement(logits, label_N, inputs.classes_of_data, inputs.bootstrap, inputs.seed)
        return Computed({self.name: score})


def label_agreement(
    logits: np.ndarray, labels: np.ndarray, same_classes: bool, bootstrap: int = 200, seed: int = 0
) -> Score:
    """Share of samples whose arg-max over logits [N, K] is the label [N] they were sampled for.

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
