"""Options that every sampler has, and their ranges."""

from dataclasses import dataclass
from typing import Annotated

from ldmlab.errors import ConfigError
from ldmlab.ranges import Fraction, Interval, Range


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """How the denoise callable is guided; `ldmlab.guidance` applies it, no sampler does.

    Args:
        guidance: classifier-free scale, at least 0; 1 is none.
        guidance_interval: [low, high], the noise-to-signal ratios sigma / alpha between which guidance acts (low < ratio
            <= high; Kynkäänniemi et al. 2024); None is everywhere.
        guidance_rescale: 0 (off) … 1, the share of the guided answer that gets back the standard deviation of the
            conditional one (Lin et al. 2023, §3.4).

    Raises ConfigError for values outside these ranges.
    """

    guidance: Annotated[float, Range(at_least=0, at_most=10_000)] = 1.0
    guidance_interval: Interval | None = None
    guidance_rescale: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.guidance < 0:
            raise ConfigError(f"sampler.guidance must be at least 0 (1 is no guidance); got {self.guidance}.")
        check_interval("sampler.guidance_interval", self.guidance_interval)
        if not 0 <= self.guidance_rescale <= 1:
            raise ConfigError(
                f"sampler.guidance_rescale must be from 0 (off) to 1; got {self.guidance_rescale}. Lin et al. use 0.7."
            )


def check_interval(path: str, interval: list[float] | None) -> None:
    """ConfigError unless it is [low, high] with 0 <= low < high, or None."""
    if interval is not None and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
        raise ConfigError(
            f"{path} must be [low, high], noise-to-signal ratios with 0 <= low < high, or null; got {interval}."
        )


def check_eta(eta: float) -> None:
    """ConfigError unless eta is a share of the ancestral noise."""
    if not 0 <= eta <= 1:
        raise ConfigError(f"sampler.eta must be from 0 to 1; got {eta}.")
