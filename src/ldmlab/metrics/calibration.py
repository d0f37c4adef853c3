"""Which metric must answer which corruption, and whether it did: the dose–response test before a metric is believed.

`REQUIRED` is written down before anything is measured. A metric answers a corruption when its score is worse at every larger dose
and told from none (95 %) at the largest; the smallest dose that is told says how fine it sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
NEVER_TRAINED_ON = ("texture", "warp", "broken")  # a trained extractor's augmentation leaves these out


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


def able(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that real images without conditions can be scored by."""
    return [metric for metric in metrics if set(metric.needs) <= {"features", "logits", "classes", "pixels"}]
