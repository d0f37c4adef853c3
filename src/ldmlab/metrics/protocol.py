"""What must be equal before two numbers may stand in one table: the protocol card, and the settings of their metric.

The card says how the images were made and looked at, once for all metrics. Each metric's own settings stand beside it, so a
metric that is added, or whose settings change, leaves the scores of the others comparable.
"""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any, NamedTuple

CUSTOMARY = 50_000  # samples behind most published FIDs
COMPRESSION_STUDY = 5_000  # samples behind Fig. 6, 7 and 17 of arXiv 2112.10752
LIBRARIES = ("torch", "torchvision", "torch-fidelity", "torchmetrics", "numpy", "scipy")
# They say which of several equal measurements a card belongs to, not how it was made
NOT_PROTOCOL = ("snapshot_images", "seed", "noise")
WORDS = {"classifier_free": "w", "autoguidance": "auto"}  # kinds of guidance on the short card; others by their name


def versions() -> dict[str, str]:
    """Versions of what takes part in a score, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


@dataclass(frozen=True)
class ProtocolCard:
    """How a set of scores was made. Fields that do not apply (no sampler in a reconstruction score) are None.

    guidance: kind → what its guidance, or the sampler, says of itself, only of kinds that act: {"classifier_free": {"scale": 1.5}}.
    By convention `scale` is its strength (or else its first number), `interval` the noise-to-signal ratios between which it
    acts. Counts are images. `reference` and `extractor_hash` are hashes of content, so a changed data set or network shows.
    """

    reference: str  # hash of data fingerprint, split, count and loader
    reference_split: str
    reference_images: int
    resolution: int
    samples: int
    label_mode: str | None  # uniform, random or from_data
    sampler: str | None  # ddim, ddpm, …; None: reconstructions, not samples
    steps: int | None
    eta: float | None
    weights: str | None  # ema, raw, or "ema width 0.1"
    snapshot_images: int | None  # training images behind the scored weights
    extractor: str
    extractor_hash: str
    resize: str  # how images reach the extractor's size
    rounding: str = "8-bit, nearest"
    grid: str | None = None  # the sampler's choice of time steps
    evaluations: int | None = None  # of denoisers a sample (a guided pair is one, a weak model another); None: steps
    sampler_options: dict[str, Any] = field(default_factory=dict)  # those that have no field of their own here
    guidance: dict[str, dict[str, Any]] = field(default_factory=dict)
    seed: int = 0  # of the start noise
    noise: str | None = (
        None  # pixels: drawn there and projected, so that latents of other sizes share it; None: drawn in the latent
    )
    precision: str | None = None  # bf16: how denoisers multiplied while sampling; None: fp32
    size: str | None = None  # of samples that have another than `resolution`, and their windows
    first: dict[str, Any] | None = None  # of two models in a row: how the first one's samples were drawn
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, object]:
        """For json."""
        return asdict(self)

    @staticmethod
    def from_dict(row: dict) -> "ProtocolCard":
        """The card a `to_dict` came from. Raises ValueError for a card with other fields (another version's)."""
        known, given = {f.name for f in fields(ProtocolCard)}, set(row)
        if given - known:
            raise ValueError(f"unknown fields on a protocol card: {', '.join(sorted(given - known))}")
        return ProtocolCard(**row)

    def short(self) -> str:
        """One line for titles and legends: `5k·ddim50·eta0·w1.5·uniform·shapes-8c1d`."""
        parts = [count(self.samples)]
        if self.sampler is None:
            parts.append("reconstruction")
        else:
            parts.append(f"{self.sampler}{'' if self.steps is None else self.steps}")
            parts += [f"eta{self.eta:g}"] if self.eta is not None else []
            parts += [self.precision] if self.precision is not None else []
            parts += [word for kind, own in self.guidance.items() for word in _short(kind, own)]
        parts += [] if self.size is None else [self.size]
        parts += [self.label_mode] if self.label_mode is not None else []
        parts += [] if self.weights in (None, "ema") else [self.weights]
        parts.append(f"{self.extractor}-{self.extractor_hash[:4]}")
        return "·".join(parts)

    def differences(self, other: "ProtocolCard") -> list[str]:
        """Names of the fields that differ, in the card's order, as `versions.torch` or `guidance.classifier_free.scale`."""
        return leaf_differences(self.to_dict(), other.to_dict())

    def warnings(self) -> list[str]:
        """What a reader must know before holding the numbers against published ones."""
        found = []
        if self.samples < CUSTOMARY:
            more = "" if self.samples < COMPRESSION_STUDY else " (the paper's compression study used 5 000)"
            found.append(f"{self.samples} samples; the customary number is 50 000{more}. FID falls with more samples.")
        if self.extractor != "inception":
            found.append(f"{self.extractor} features: compare with numbers of the same extractor and hash only.")
        if self.label_mode == "random":
            found.append(
                "labels drawn at random: class counts vary, and FID is usually worse than with uniform labels."
            )
        return found


class Protocol(NamedTuple):
    """The card of some scores, and the settings of each of their metrics by name."""

    card: ProtocolCard
    settings: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def of(row: Mapping[str, Any]) -> "Protocol":
        """From the content of a scores.json. Raises ValueError for another version's card."""
        return Protocol(
            ProtocolCard.from_dict(row["card"]), {name: said["settings"] for name, said in row["metrics"].items()}
        )


def comparable(a: Protocol, b: Protocol, metric: str) -> bool:
    """Whether two scores of one metric may stand in one column: equal cards, but for the snapshot and the seed of the noise,
    and equal settings of that metric. What else was scored beside it does not matter."""
    return not protocol_differences(a, b, metric)


def protocol_differences(a: Protocol, b: Protocol, metric: str) -> list[str]:
    """The differences that keep two scores apart, as an unequal cell of a table has to name them: `steps`, `kid.subsets`.

    Raises KeyError for a metric that one of them did not score.
    """
    found = [name for name in a.card.differences(b.card) if name not in NOT_PROTOCOL]
    return found + [f"{metric}.{name}" for name in leaf_differences(a.settings[metric], b.settings[metric])]


def _short(kind: str, own: Mapping[str, Any]) -> list[str]:
    """w1.5, in 0.3–5, rescale0.7; no interval for the built-in gradients, which always have one"""
    numbers = [value for value in own.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    strength = own.get("scale", numbers[0] if numbers else None)
    found = [f"{WORDS.get(kind, kind)}{'' if strength is None else f'{strength:g}'}"]
    found += (
        [f"in {'–'.join(f'{ratio:g}' for ratio in own['interval'])}"]
        if own.get("interval") and kind not in ("classifier", "image")
        else []
    )
    return found + ([f"rescale{own['rescale']:g}"] if own.get("rescale") else [])


def leaf_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted names of the leaves that differ, in order of `a`, then what only `b` has. None and no entry are equal."""
    found: list[str] = []
    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name), b.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{name}.{inner}" for inner in leaf_differences(one, other)]
        elif one != other:
            found.append(name)
    return found


def count(n: int) -> str:
    """5000 → 5k, 1281167 → 1.28M, 500 → 500."""
    if n >= 1_000_000:
        return f"{n / 1e6:.3g}M"
    return f"{n / 1000:.4g}k" if n >= 1000 else str(n)
