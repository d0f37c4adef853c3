"""The protocol card: what must be equal before two numbers may stand in one table."""

import platform
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version

CUSTOMARY = 50_000  # samples behind most published FIDs
COMPRESSION_STUDY = 5_000  # samples behind Fig. 6, 7 and 17 of arXiv 2112.10752
LIBRARIES = ("torch", "torchvision", "torch-fidelity", "torchmetrics", "numpy", "scipy")
# They say which of several equal measurements a card belongs to, not how it was made
NOT_PROTOCOL = ("snapshot_images", "seed")


def versions() -> dict[str, str]:
    """Versions of what takes part in a score, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


@dataclass(frozen=True)
class ProtocolCard:
    """How a score was made. Fields that do not apply (no sampler in a reconstruction score) are None.

    Counts are images. `reference` and `extractor_hash` are hashes of content, so a changed data set or network shows.
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
    guidance: float | None
    weights: str | None  # ema, raw, or "ema width 0.1"
    snapshot_images: int | None  # training images behind the scored weights
    extractor: str
    extractor_hash: str
    resize: str  # how images reach the extractor's size
    rounding: str = "8-bit, nearest"
    grid: str | None = None  # the sampler's choice of time steps
    evaluations: int | None = (
        None  # of a denoiser (the guided pair is one, a weak model another) for each sample; None: steps
    )
    guidance_interval: list[float] | None = None  # noise-to-signal ratios between which guidance acts; None: everywhere
    guidance_rescale: float | None = None  # share; None: not rescaled
    autoguidance: dict | None = None  # scale; weak: a denoiser's id, or "own snapshot"; images it was trained with
    classifier_guidance: dict | None = None  # scale; classifier: its id
    image_guidance: dict | None = None  # scale, sha256 of the picture, what of it is looked at
    churn: dict | None = None  # S_churn, S_tmin, S_tmax, S_noise of Heun's sampler
    seed: int = 0  # of the start noise
    bootstrap: int = 200
    bootstrap_seed: int = 0
    fid: str = "unbiased covariance, float64, eigenvalues of the symmetric form"
    inception_score: str = "10 splits, shuffle seed 2020"
    kid: str = "cubic polynomial, 100 subsets of at most 1000, seed 2020"
    precision_recall: str = "k = 3"
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
            parts += [f"w{self.guidance:g}"] if self.guidance is not None else []
            parts += [f"in {'–'.join(f'{r:g}' for r in self.guidance_interval)}"] if self.guidance_interval else []
            parts += [f"rescale{self.guidance_rescale:g}"] if self.guidance_rescale else []
            steered = (
                ("auto", self.autoguidance),
                ("classifier", self.classifier_guidance),
                ("image", self.image_guidance),
            )
            parts += [f"{word}{of['scale']:g}" for word, of in steered if of is not None]
            parts += [f"churn{self.churn['s_churn']:g}"] if self.churn is not None else []
        parts += [self.label_mode] if self.label_mode is not None else []
        parts += [] if self.weights in (None, "ema") else [self.weights]
        parts.append(f"{self.extractor}-{self.extractor_hash[:4]}")
        return "·".join(parts)

    def differences(self, other: "ProtocolCard") -> list[str]:
        """Names of the fields that differ, in the card's order, libraries as `versions.torch`."""
        found = []
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            if f.name == "versions":
                found += [f"versions.{name}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
            elif a != b:
                found.append(f.name)
        return found

    def warnings(self) -> list[str]:
        """What a reader must know before holding the numbers against published ones."""
        found = []
        if self.samples < CUSTOMARY:
            more = "" if self.samples < COMPRESSION_STUDY else " (the paper's compression study used 5 000)"
            found.append(f"{self.samples} samples; the customary number is 50 000{more}. FID falls with more samples.")
        if self.extractor != "inception":
            found.append(f"{self.extractor} features: comparable with numbers of the same extractor and hash only.")
        if self.label_mode == "random":
            found.append(
                "labels drawn at random: class counts vary, and FID is usually worse than with uniform labels."
            )
        return found


def comparable(a: ProtocolCard, b: ProtocolCard) -> bool:
    """Whether two scores may stand in one column: equal cards, but for the snapshot and the seed of the noise."""
    return not protocol_differences(a, b)


def protocol_differences(a: ProtocolCard, b: ProtocolCard) -> list[str]:
    """The differences that keep two scores apart: what an unequal cell of a table has to name."""
    return [name for name in a.differences(b) if name not in NOT_PROTOCOL]


def count(n: int) -> str:
    """5000 → 5k, 1281167 → 1.28M, 500 → 500."""
    if n >= 1_000_000:
        return f"{n / 1e6:.3g}M"
    return f"{n / 1000:.4g}k" if n >= 1000 else str(n)
