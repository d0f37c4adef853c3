"""The one order in which all guidance acts, from the network outwards:

    1. a weaker model (autoguidance): each answer of the network is moved away from the weak model's
    2. the null condition (classifier-free), rescaled, within its interval: both halves are answers of 1
    3. a classifier of noisy latents: pushes what 2 says; nothing differentiates the denoiser
    4. an image: its gradient runs through 1 and 2 and the decoder, and what it compares is what 3 left

Inside 2 the weak model costs one more evaluation for each half; outside it could not know the two apart.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Schedule
from ldmlab.guidance.compose_denoise import Asked, as_asked, autoguided, limited
from ldmlab.guidance.gradient import Classifier, LogP, classifier_guided, image_guided


@dataclass(frozen=True)
class Twin:
    """One wish in the words of two models whose conditioners were trained apart."""

    strong: Any
    weak: Any


@dataclass(frozen=True)
class Weak:
    """Autoguidance. The condition of each call is then a `Twin`. scale: 1 is none."""

    denoise: Denoise
    scale: float


@dataclass(frozen=True)
class Towards:
    """Classifier guidance: classes label_B (int64, one of each image), the scale of the gradient, and where it acts."""

    classifier: Classifier
    label_B: Tensor
    scale: float
    interval: list[float] | None = None


@dataclass(frozen=True)
class Like:
    """Image guidance: the log-probability of z_0, the scale of its gradient, and where it acts."""

    log_p: LogP
    scale: float
    interval: list[float] | None = None


def stacked(
    denoise: Denoise,
    asked: Asked,
    schedule: Schedule,
    null: Any,
    both: Any = None,
    weak: Weak | None = None,
    towards: Towards | None = None,
    like: Like | None = None,
) -> Denoise:
    """`denoise` with all that is asked for, in the order above; itself when nothing is.

    Args:
        denoise: the network's answer.
        asked: the sampler's options of classifier-free guidance.
        schedule: the denoiser's.
        null, both: the null condition, and the condition and it in one batch of 2B (see `guided`).

    Raises ConfigError as `guided` does.
    """
    steered = denoise
    if weak is not None:
        steered = autoguided(hearing(denoise, "strong"), hearing(weak.denoise, "weak"), weak.scale)
        if weak.scale == 1:  # a condition is a Twin all the same
            steered = hearing(denoise, "strong")
    steered = as_asked(steered, asked, null, schedule, both)
    if towards is not None:
        pushed = classifier_guided(steered, towards.classifier, towards.label_B, towards.scale, schedule)
        steered = _within(pushed, steered, towards.interval, schedule)
    if like is not None:
        pushed = image_guided(steered, like.log_p, like.scale, schedule)
        steered = _within(pushed, steered, like.interval, schedule)
    return steered


def _within(inside: Denoise, outside: Denoise, interval: list[float] | None, schedule: Schedule) -> Denoise:
    return inside if interval is None else limited(inside, outside, interval, schedule)


def hearing(denoise: Denoise, which: str) -> Denoise:
    """`denoise`, asked with its side of a `Twin`."""

    def denoise_own(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        return denoise(zt_BCHW, t_B, getattr(cond, which))

    return denoise_own
