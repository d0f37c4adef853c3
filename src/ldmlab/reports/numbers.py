"""How numbers are said: what each metric is called, rounding, and the comparison of two scores."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from ldmlab.metrics import intervals
from ldmlab.metrics.metric import Metric
from ldmlab.metrics.protocol import leaf_differences
from ldmlab.metrics.standard import STANDARD
from ldmlab.reports.records import Estimate, StageRecord

PAIRED = "the paired 95 % interval of their difference"
OVERLAP = "overlap of their intervals (without stored replicates no paired interval, which would be narrower)"


class MetricDeclaration(NamedTuple):
    """What a score is called, in which unit it is shown, and which direction is better ("" for neither).

    interval: what its 95 % interval is over, in a few words. covers: the same as one sentence. "" where nothing says so.
    """

    key: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    interval: str = ""
    covers: str = ""

    @property
    def factor(self) -> float:
        """What a stored number is multiplied by to be shown in the unit."""
        return {"%": 100.0, "×10³": 1000.0}.get(self.unit, 1.0)

    @property
    def raw_unit(self) -> str:
        """The unit of the stored number, after a space; "" where only the shown number has one."""
        return f" {self.unit}" if self.unit and self.factor == 1 else ""

    @property
    def head(self) -> str:
        arrow = {"higher": "↑", "lower": "↓", "": ""}[self.better]
        return " ".join(part for part in (self.label, f"({self.unit})" if self.unit else "", arrow) if part)


# The order of columns, and the declarations of scores.json files that hold none; a file's own declaration comes first.
SAMPLE_METRICS = tuple(
    MetricDeclaration(key, STANDARD[key].label, STANDARD[key].unit, STANDARD[key].better or "")
    for key in ("fid", "fid_infinity", "is", "kid", "precision", "recall", "label_agreement")
)
FIRST_STAGE_METRICS = (
    MetricDeclaration("psnr", "PSNR", "dB", "higher"),
    MetricDeclaration("linear_psnr", "linear PSNR", "dB"),
    MetricDeclaration("gain_over_linear", "gain over linear", "dB"),
    MetricDeclaration("ssim", "SSIM", "", "higher"),
    MetricDeclaration("perceptual", "perceptual", "", "lower"),
    MetricDeclaration("rfid", "rFID", "", "lower"),
    MetricDeclaration("ris", "R-IS", "", "higher"),
    MetricDeclaration("bits_per_pixel", "rate", "bit/pixel"),
    MetricDeclaration("entropy_bits_per_pixel", "entropy", "bit/pixel"),
    MetricDeclaration("kl_bits", "KL", "bit/element"),
    MetricDeclaration("codebook_usage", "codebook used", "%", "higher"),
    MetricDeclaration("codebook_perplexity", "codebook perplexity", "", "higher"),
    MetricDeclaration("latent_mean", "latent mean"),
    MetricDeclaration("latent_std", "latent std"),
)
KNOWN = {metric.key: metric for metric in (*SAMPLE_METRICS, *FIRST_STAGE_METRICS)}


def declaration(key: str, declared: dict[str, dict[str, Any]]) -> MetricDeclaration:
    """From the file's own declarations, else from the table above, else the bare name."""
    if key not in declared:
        return KNOWN.get(key, MetricDeclaration(key, key.replace("_", " ")))
    said, known = declared[key], KNOWN.get(key, MetricDeclaration(key, key.replace("_", " ")))
    unit = said.get("unit") or (known.unit if known.factor != 1 else "")
    words = (str(said.get(name) or "") for name in ("interval", "covers"))
    return MetricDeclaration(key, said.get("label") or known.label, unit, said.get("better") or "", *words)


def metrics_of(records: list[StageRecord]) -> list[MetricDeclaration]:
    """What somebody measured: known names in their order, then the others."""
    declared = {key: said for record in records for key, said in record.declared.items()}
    measured = {key: score.covers for record in records for key, score in record.scores.items()}
    order = list({**KNOWN, **measured})
    own = [key for key in measured if not declared.get(key, {}).get("beside")]  # the others: reports.beside
    found = [declaration(key, declared) for key in sorted(own, key=order.index)]
    return [
        metric._replace(interval=Metric.interval, covers=measured[metric.key])
        if measured[metric.key] and metric.key not in declared
        else metric
        for metric in found
    ]


def by_words(metrics: Iterable[MetricDeclaration], words: Literal["interval", "covers"]) -> str:
    """ "FID, IS: over images at this N; FID∞: …", each wording once; "" where no metric says it."""
    labels: dict[str, list[str]] = {}
    for metric in metrics:
        labels.setdefault(getattr(metric, words), []).append(metric.label)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in labels.items() if text)


# ---- rounding -------------------------------------------------------------------------------------------------------


def decimals(score: Estimate) -> int:
    """Three significant digits of the value, and more only while the interval would otherwise collapse."""
    size = abs(score.value) or abs(score.high or 0.0) or 1.0
    if not math.isfinite(size) or size < 5e-7:  # six decimals would be zeros
        return 0
    digits = 2 - math.floor(math.log10(size))
    if score.low is not None and score.high is not None and 0 < score.high - score.low < math.inf:
        digits = max(digits, math.ceil(-math.log10(score.high - score.low)))
    return min(max(digits, 0), 6)


def number(value: float, digits: int) -> str:
    """A rounded number with a true minus sign, thousands set apart, no negative zero."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}".replace(",", "\u202f")
    return text.lstrip("-") if float(f"{value:.{digits}f}") == 0 else text.replace("-", "−")


def count(value: float | None) -> str:
    """An image count: 40 000; a dash for None."""
    return "–" if value is None else number(value, 0)


def shown(score: Estimate, factor: float = 1.0) -> tuple[str, str]:
    """(value, interval) as printed; the interval is "" when there is none."""
    scaled = score.times(factor)
    digits = decimals(scaled)
    if scaled.low is None or scaled.high is None:
        return number(scaled.value, digits), ""
    return number(scaled.value, digits), f"[{number(scaled.low, digits)}, {number(scaled.high, digits)}]"


def said(score: Estimate, metric: MetricDeclaration) -> str:
    """ "12.3 [11.9, 12.8]" """
    return " ".join(part for part in shown(score, metric.factor) if part)


def plain(value: float | None) -> str:
    """Three significant digits; a dash for None."""
    return "–" if value is None else shown(Estimate(float(f"{value:.3g}")))[0]


def plain_said(score: Estimate | None) -> str:
    """ "12.3 [11.9, 12.8]" of a number without a declaration; a dash for None."""
    return "–" if score is None else " ".join(part for part in shown(score) if part)


def millions(count: int) -> str:
    if count == 0:
        return "0"
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e3 else str(count)


CPU_TIME = "CPU time: of the whole stage, all its processes and threads; other work on the machine does not change it."


def seconds(value: float | None) -> str:
    """A duration as a person says it: 41.2 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def option(value: Any) -> str:
    """An option's value as the command line would take it."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def facts(mapping: dict[str, Any]) -> list[tuple[str, str]]:
    """A card as (field, text) pairs; nested values as compact JSON."""
    return [(str(key), option(value)) for key, value in mapping.items()]


# ---- comparison -----------------------------------------------------------------------------------------------------


def common_card(records: list[StageRecord], metric: str) -> dict[str, Any]:
    """The protocol of this metric that most records share (the first of equals)."""
    cards = [record.protocol(metric) for record in records if metric in record.scores]
    keys = [repr(sorted((k, repr(v)) for k, v in card.items())) for card in cards]
    return cards[keys.index(Counter(keys).most_common(1)[0][0])] if cards else {}


def paired(a: Estimate, b: Estimate) -> Estimate | None:
    """b - a with its 95 % interval (`metrics.intervals.paired_interval`); None when either has no replicates, or another
    number of them."""
    one, other = (intervals.Score(s.value, s.value, s.value, 0, s.method, 0, s.replicates) for s in (a, b))
    try:
        found = intervals.paired_interval(one, other)
    except ValueError:
        return None
    return Estimate(found.value, found.low, found.high)


def distinguishable(a: Estimate, b: Estimate) -> bool:
    """Whether the interval of the paired difference excludes 0; without one, whether the two intervals are apart."""
    difference = paired(a, b)
    return not a.overlaps(b) if difference is None else not difference.overlaps(Estimate(0.0))


@dataclass(frozen=True)
class Comparison:
    """`b` less `a` in one metric, with the paired interval where both stored replicates."""

    metric: MetricDeclaration
    score: Estimate
    distinguishable: bool

    @property
    def verdict(self) -> str:
        """better, worse, different (of a metric without a direction) or not distinguishable."""
        if not self.distinguishable:
            return "not distinguishable"
        if not self.metric.better:
            return "different"
        return "better" if (self.score.value < 0) == (self.metric.better == "lower") else "worse"

    @property
    def text(self) -> str:
        """+1.2 [0.4, 2.0]"""
        return ("+" if self.score.value > 0 else "") + said(self.score, self.metric)


def compare(a: StageRecord, b: StageRecord, metric: MetricDeclaration) -> Comparison | None:
    """None where either lacks the score, or their protocols differ."""
    one, other = a.scores.get(metric.key), b.scores.get(metric.key)
    if one is None or other is None or leaf_differences(a.protocol(metric.key), b.protocol(metric.key)):
        return None
    difference = paired(one, other) or Estimate(other.value - one.value)
    return Comparison(metric, difference, distinguishable(one, other))


class Compared(Protocol):
    """A cell of a study: a name, and the scores by which it is compared."""

    @property
    def label(self) -> str: ...

    @property
    def compared(self) -> StageRecord: ...


Cell = TypeVar("Cell", bound=Compared)


def indistinct(
    pairs: Iterable[tuple[Cell, Cell]], metrics: Iterable[MetricDeclaration]
) -> list[tuple[MetricDeclaration, list[tuple[Cell, Cell]]]]:
    """For each metric the pairs, of equal protocol, that are not distinguishable."""
    pairs, found = list(pairs), []
    for metric in metrics:
        differences = [(a, b, compare(a.compared, b.compared, metric)) for a, b in pairs]
        same = [(a, b) for a, b, difference in differences if difference is not None and not difference.distinguishable]
        found += [(metric, same)] if same else []
    return found


def pair_names(pairs: list[tuple[Cell, Cell]]) -> str:
    return "; ".join(f"{a.label} and {b.label}" for a, b in pairs)


def tie(metric: MetricDeclaration, which: str) -> str:
    return f"Not distinguishable in {metric.label} by {PAIRED}: {which}."


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV in full precision, a column for every name that occurs; None is empty."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
