"""Which metric must answer which corruption, and whether it did: the dose–response test before a metric is believed.

`REQUIRED` is written down before anything is measured. A metric answers a corruption when its score is worse at every larger dose
and told from none (95 %) at the largest; the smallest dose that is told says how fine it sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ldmlab.metrics.corruptions import CORRUPTIONS
from ldmlab.metrics.intervals import Difference, Score, paired_interval
from ldmlab.metrics.metric import Metric

MISSING, LINEAR = "missing", "linear"  # classes left out; images from few principal components
EVERY = (*CORRUPTIONS, MISSING, LINEAR)
OF_IMAGES = (*CORRUPTIONS, LINEAR)
# A distance between sets answers all. Precision looks at single images: it need not see that classes are missing. Recall looks at
# what is covered: it must see those; single broken images are not its business. IS asks whether a classifier is sure.
REQUIRED: dict[str, tuple[str, ...]] = {
    "fid": EVERY, "fid_infinity": EVERY, "kid": EVERY,
    "precision": ("blur", "noise", "texture", "warp", "broken", LINEAR),
    "recall": (MISSING,),
    "is": ("broken", MISSING),
}  # fmt: skip
HEADS = ("metric", "corruption", "in advance", "verdict", "told from dose", "none", "score at each dose")


@dataclass(frozen=True)
class Response:
    """One metric over the doses of one corruption. `scores[i]` belongs to `doses[i]`; `none` is the score of no dose."""

    metric: str
    corruption: str
    doses: tuple[float, ...]
    scores: tuple[Score, ...]
    none: Score
    better: str | None

    @property
    def worse(self) -> list[Difference]:
        """How much worse than none at each dose, positive for worse."""
        found = [paired_interval(self.none, score) for score in self.scores]
        if self.better != "higher":
            return found
        return [Difference(-d.value, -d.high, -d.low, d.distinguishable) for d in found]

    @property
    def grows(self) -> bool:
        """Whether each larger dose has the worse score, no dose included."""
        values = [0.0, *(d.value for d in self.worse)]
        return all(b > a for a, b in pairwise(values))

    @property
    def told(self) -> float | None:
        """The smallest dose from which on every score is told from none, as worse."""
        found = None
        for dose, difference in zip(reversed(self.doses), reversed(self.worse), strict=True):
            if not (difference.distinguishable and difference.value > 0):
                break
            found = dose
        return found

    @property
    def required(self) -> bool:
        return self.corruption in REQUIRED.get(self.metric, ())

    @property
    def verdict(self) -> str:
        """answers, partly (told at the largest dose, but not worse with each), or blind."""
        if self.told is None:
            return "blind"
        return "answers" if self.grows else "partly"

    @property
    def failed(self) -> bool:
        """Whether an answer that was required in advance is missing."""
        return self.required and self.verdict != "answers"

    def to_dict(self) -> dict[str, Any]:
        """For json, with the replicates of every score."""
        return {
            "metric": self.metric, "corruption": self.corruption, "doses": list(self.doses), "required": self.required,
            "verdict": self.verdict, "told_from": self.told, "none": self.none.to_dict(),
            "scores": [score.to_dict() for score in self.scores],
        }  # fmt: skip

    def row(self) -> list[str]:
        """Of the page's table, under HEADS."""
        values = " · ".join(f"{dose:g}: {score.value:.4g}" for dose, score in zip(self.doses, self.scores, strict=True))
        told = "–" if self.told is None else f"{self.told:g}"
        must = "must answer" if self.required else "need not"
        verdict = f"{self.verdict}{' – required' if self.failed else ''}"
        return [self.metric, self.corruption, must, verdict, told, f"{self.none.value:.4g}", values]


def able(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that real images without conditions can be scored by."""
    return [metric for metric in metrics if set(metric.needs) <= {"features", "logits", "classes", "pixels"}]


def not_measured(metrics: Sequence[Metric], responses: Sequence[Response]) -> list[str]:
    """Required answers that nobody looked for: a metric that needs more images, a corruption that this data cannot have."""
    measured = {(r.metric, r.corruption) for r in responses}
    wanted = [(metric.name, corruption) for metric in metrics for corruption in REQUIRED.get(metric.name, ())]
    return [f"{name} to {corruption}" for name, corruption in wanted if (name, corruption) not in measured]


def section(responses: Sequence[Response], left: Sequence[str], over: str) -> dict[str, Any]:
    """What the page shows, for report.json: a verdict, a row for each metric and corruption, a sheet for each corruption.

    left: what was `not_measured`. over: images and features, in words.
    """
    order = list(REQUIRED)
    sorted_rows = sorted(responses, key=lambda r: order.index(r.metric) if r.metric in REQUIRED else len(order))
    failed = [f"{r.metric} to {r.corruption}" for r in responses if r.failed]
    said = [f"Required answers that are missing: {', '.join(failed)}."] if failed else []
    said += [f"Required, but not measured here: {', '.join(left)}."] if left else []
    return {
        "title": "Calibration: what each metric answers to",
        "text": f"{over}. Answers: the score is worse at every larger dose and told from none (95 %; paired over images, but for "
        "missing classes) at the largest; partly: told, but not worse with every dose. "
        f"{' '.join(said) or 'Every required answer is there.'}",
        "table": {"columns": list(HEADS), "rows": [r.row() for r in sorted_rows]},
        "pictures": [f"{name}.png" for name in dict.fromkeys(r.corruption for r in responses)],
    }
