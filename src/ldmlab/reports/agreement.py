"""Label agreement class by class: which classes samples are not, and what the classifier takes them for instead.

Shape letters: N samples, K classes.
"""

from typing import Any

from ldmlab.errors import DataError
from ldmlab.metrics.extraction import load_features
from ldmlab.metrics.intervals import wilson
from ldmlab.reports import document as doc
from ldmlab.reports.collect import again
from ldmlab.reports.numbers import shown
from ldmlab.reports.records import Estimate, Run, SampleSet, StageRecord

METRIC = "label_agreement"
MOST = 20  # classes shown
NOTE = "The share of each class's samples that the classifier behind the scores takes for this class, least first; in brackets 95 %."


def section(run: Run) -> doc.Section | None:
    """Of the run's last scored snapshot. None where label agreement was not scored, or its features are not kept."""
    last = run.last_scored
    if last is None or last.scores is None or last.samples is None or METRIC not in last.scores.scores:
        return None
    answer_N = _answers(last.scores)
    if answer_N is None:
        return None
    rows = by_class(answer_N, last.samples.pictures)
    more = f" The first {MOST} of {len(rows)} classes." if len(rows) > MOST else ""
    table = doc.Table(["class", "samples", "label agreement (%) ↑", "taken for"], rows[:MOST], left=1)
    return doc.Section("Label agreement by class", [table, doc.Paragraph(NOTE + more, "small")], "agreement")


def by_class(answer_N: Any, drawn: SampleSet) -> list[list[doc.Entry]]:
    """A row a class that was drawn, least agreement first: its name, its samples, its share, the commonest wrong answers.

    answer_N: the class that the classifier sees in each sample.
    """
    import numpy as np

    label_N, found = np.asarray(drawn.labels), []
    for label in np.unique(label_N):
        seen_K = np.bincount(answer_N[label_N == label], minlength=label + 1)
        n, right = int(seen_K.sum()), int(seen_K[label])
        seen_K[label] = 0
        wrong = [f"{drawn.class_name(int(k))} {seen_K[k]}" for k in np.argsort(-seen_K, kind="stable")[:3] if seen_K[k]]
        share = shown(Estimate(right / n, *wilson(right, n)), 100)
        name = doc.Entry(drawn.class_name(int(label)))
        found.append((right / n, [name, doc.Entry(str(n)), doc.Entry(*share), doc.Entry(", ".join(wrong) or "–")]))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def _answers(scores: StageRecord) -> Any:
    """The arg-max of each sample's logits, int64 [N]; None where the features are not kept."""
    path = scores.folder / "features.npz"
    if not path.is_file():
        return None
    try:
        logit_NK = load_features(path).logits
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it. {again(scores.command)}") from None
    return None if logit_NK is None else logit_NK.argmax(axis=1)
