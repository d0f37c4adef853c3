"""Classifier-free guidance: the prediction is moved away from that for the null condition, rescaled, within an interval.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Schedule
from ldmlab.errors import ConfigError
from ldmlab.guidance.base import Binding, Guidance, SampleCost, with_interval
from ldmlab.guidance.interval import limited, share_within

Correction = Callable[[Prediction, Prediction, Tensor, Tensor], Prediction]  # (guided, conditional, z_t, t_B)


class GuidanceScale(Protocol):
    """What a sampler's options say about guidance (samplers/options.py gives ranges and sources)."""

    @property
    def guidance(self) -> float: ...
    @property
    def guidance_interval(self) -> list[float] | None: ...
    @property
    def guidance_rescale(self) -> float: ...


@dataclass(frozen=True)
class ClassifierFreeGuidance(Guidance):
    """Classifier-free guidance by the sampler's options. Its own options are the sampler's, and stand there on card and id."""

    name: ClassVar[str] = "classifier_free"
    reads_null: ClassVar[bool] = True

    sampler: Any
    bound: Binding | None = None

    def card(self) -> dict[str, Any]:
        own: dict[str, Any] = with_interval({"scale": self.sampler.guidance}, self.sampler.guidance_interval)
        return own | ({"rescale": self.sampler.guidance_rescale} if self.sampler.guidance_rescale else {})

    def words(self) -> str:
        """The sampler's row of the plan says its scale."""
        return ""

    def cost(self, cost: SampleCost) -> None:
        """Within the guidance interval the null half doubles the pass."""
        cost.passes *= 1 + share_within(self.sampler.guidance_interval, cost.schedule, cost.times)

    def wrap(self, denoise: Denoise) -> Denoise:
        assert self.bound is not None
        return classifier_free(denoise, self.sampler, self.bound.null, self.bound.schedule, self.bound.both)


def classifier_free(
    denoise: Denoise, sampler: GuidanceScale, null: Any, schedule: Schedule, both: Any = None
) -> Denoise:
    """`denoise` with the guidance of a sampler's options: classifier-free, rescaled, within its interval.

    null, both: as in `guided`. Raises ConfigError as `guided` does.
    """
    correction = rescaling(sampler.guidance_rescale, schedule) if sampler.guidance_rescale > 0 else None
    steered = guided(denoise, sampler.guidance, null, correction, both)
    if sampler.guidance_interval is None or steered is denoise:
        return steered
    return limited(steered, denoise, sampler.guidance_interval, schedule)


def guided(
    denoise: Denoise, scale: float, null: Any, correction: Correction | None = None, both: Any = None
) -> Denoise:
    """Classifier-free guidance: eps = eps_null + scale · (eps_cond - eps_null) (Ho & Salimans 2022 with scale = 1 + w).

    Both halves go through the network in one batch of 2B, the null half second. Scale 1 returns `denoise` itself, 0 is
    the unconditional model. z0 follows from eps linearly at fixed z_t, so the same rule applies to it.

    Args:
        denoise: the callable to guide.
        scale: at least 0 (`sampler.guidance`).
        null: the null condition (`Cond`), for as many images as will be sampled at once.
        correction: of the guided prediction, given the conditional one (`rescaling`).
        both: `cond.cat(null)` of the condition that every call will come with, made (and prepared for the network) once; None
            makes it in each call, of whatever condition comes.

    Raises ConfigError for a negative scale, or when there is no condition to guide with.
    """
    if scale < 0:
        raise ConfigError(f"sampler.guidance must be at least 0 (1 is no guidance); got {scale}.")
    if scale == 1:
        return denoise
    if null.empty:
        raise ConfigError(
            f"sampler.guidance={scale} needs a condition to guide with, and this denoiser has none (cond=none). "
            "Use sampler.guidance=1, or train with a condition, for instance cond=class_label."
        )

    def guided_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        pair = cond.cat(null) if both is None else both
        answer = denoise(torch.cat([zt_BCHW, zt_BCHW]), torch.cat([t_B, t_B]), pair)
        (z0_c, z0_u), (eps_c, eps_u) = answer.z0.chunk(2), answer.eps.chunk(2)
        conditional = Prediction(z0_c, eps_c)
        further = away_from(conditional, Prediction(z0_u, eps_u), scale)
        return further if correction is None else correction(further, conditional, zt_BCHW, t_B)

    return guided_denoise


def rescaling(share: float, schedule: Schedule) -> Correction:
    """Gives a share of the guided answer the conditional one's standard deviation (Lin et al. 2023, arXiv 2305.08891,
    §3.4): x = share · x_guided std(x_cond) / std(x_guided) + (1 - share) · x_guided.

    x is v = alpha eps - sigma z_0, what their networks answer, whatever ours were trained to; std is over C, H, W of each
    image. z_0 and eps are those of the new v at the same z_t.
    """

    def correction(further: Prediction, conditional: Prediction, zt_BCHW: Tensor, t_B: Tensor) -> Prediction:
        alpha_B111, sigma_B111 = _levels(schedule, t_B, zt_BCHW)
        v_BCHW, wanted_BCHW = (alpha_B111 * p.eps - sigma_B111 * p.z0 for p in (further, conditional))
        ratio_B111 = _spread(wanted_BCHW) / _spread(v_BCHW)
        v_BCHW = (share * ratio_B111 + 1 - share) * v_BCHW
        whole_B111 = alpha_B111**2 + sigma_B111**2  # 1 where variance is preserved
        return Prediction(
            (alpha_B111 * zt_BCHW - sigma_B111 * v_BCHW) / whole_B111,
            (sigma_B111 * zt_BCHW + alpha_B111 * v_BCHW) / whole_B111,
        )

    return correction


def away_from(answer: Prediction, other: Prediction, scale: float) -> Prediction:
    """other + scale · (answer - other), of z_0 and eps alike."""
    return Prediction(other.z0 + scale * (answer.z0 - other.z0), other.eps + scale * (answer.eps - other.eps))


def _levels(schedule: Schedule, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha_B, sigma_B = schedule.alpha(t_B, like.dtype), schedule.sigma(t_B, like.dtype)
    return alpha_B[:, None, None, None], sigma_B[:, None, None, None]


def _spread(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.std(dim=(1, 2, 3), keepdim=True)
