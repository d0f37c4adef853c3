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

    def cell(self) -> str:
        """Of the page's table: the smallest dose that is told; ✗ before a required answer that is missing, brackets around what
        was not required."""
        told = "blind" if self.told is None else f"{self.told:g}" + ("" if self.grows else ", partly")
        return f"✗ {told}" if self.failed else told if self.required else f"({told})"


def able(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that real images without conditions can be scored by."""
    return [metric for metric in metrics if set(metric.needs) <= {"features", "logits", "classes", "pixels"}]


def not_measured(metrics: Sequence[Metric], responses: Sequence[Response]) -> list[str]:
    """Required answers that nobody looked for: a metric that needs more images, a corruption that this data cannot have."""
    measured = {(r.metric, r.corruption) for r in responses}
    wanted = [(metric.name, corruption) for metric in metrics for corruption in REQUIRED.get(metric.name, ())]
    return [f"{name} to {corruption}" for name, corruption in wanted if (name, corruption) not in measured]


def verdict(responses: Sequence[Response], left: Sequence[str]) -> str:
    """Which required answers are missing, and which nobody looked for (`not_measured`)."""
    failed = [f"{r.metric} to {r.corruption}" for r in responses if r.failed]
    said = [f"Required answers that are missing: {', '.join(failed)}."] if failed else []
    said += [f"Required, but not measured here: {', '.join(left)}."] if left else []
    return " ".join(said) or "Every required answer is there."


def section(responses: Sequence[Response], left: Sequence[str], over: str) -> dict[str, Any]:
    """What the page shows, for report.json: a row for each corruption with the answer of each metric, and a sheet of pictures.

    left: what was `not_measured`. over: images and features, in words.
    """
    metrics = sorted({r.metric for r in responses}, key=[*REQUIRED, *(r.metric for r in responses)].index)
    corruptions = list(dict.fromkeys(r.corruption for r in responses))
    cells = {(r.corruption, r.metric): r for r in responses}
    first = metrics[0]
    rows = []
    for corruption in corruptions:
        scored = cells[corruption, first]
        path = " → ".join(f"{score.value:.3g}" for score in (scored.none, *scored.scores))
        answers = [cells[corruption, metric].cell() if (corruption, metric) in cells else "–" for metric in metrics]
        rows.append([corruption, " ".join(f"{dose:g}" for dose in scored.doses), *answers, path])
    return {
        "title": "Calibration: what each metric answers to",
        "text": f"{over}. A number is the smallest dose told from none (95 %; paired over images, but for missing classes), from which on "
        "every dose is told; partly: the score is not worse with every dose. ✗: an answer that was required in advance is missing; "
        f"in brackets: none was required. {verdict(responses, left)}",
        "table": {"columns": ["corruption", "doses", *metrics, f"{first}: unchanged → each dose"], "rows": rows},
        "pictures": [f"{name}.png" for name in corruptions],
    }
