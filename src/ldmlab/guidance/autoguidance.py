"""Autoguidance: away from a weaker model of the same data and condition (Karras et al. 2024, arXiv 2406.02507).

Shape letters: B batch, C channels, H W space.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.guidance.base import Binding, Guidance, Model, ModelPair, Results, SampleCost
from ldmlab.guidance.classifier_free import Correction, away_from


@dataclass(frozen=True)
class Autoguidance(Guidance):
    """Guidance away from this denoiser's earlier snapshot, or from the denoiser of another run.

    Args:
        scale: eps = weak + scale (eps - weak); 1 is none.
        snapshot: one of ldm.fit.snapshots (with `run`: of that run's).
        run: the other run, by its name or id; None: this run.
    """

    name: ClassVar[str] = "auto"
    stages: ClassVar[dict[str, str]] = {"weak": "weak_model"}

    scale: float
    snapshot: float | None = None
    run: str | None = None
    weak: Model | None = None

    def options(self) -> dict[str, Any]:
        """Which weak model it is stands among the upstream ids."""
        return {"scale": self.scale}

    def words(self) -> str:
        return f"autoguidance {self.scale:g}"

    def load(self, results: Results) -> "Autoguidance":
        return self.with_values(weak=results.stage("weak_model"))

    def bind(self, binding: Binding) -> "Autoguidance":
        """The weak model sees the latent as the strong one does."""
        if binding.windows is None or self.weak is None:
            return self
        return self.with_values(weak=replace(self.weak, windows=binding.windows))

    @property
    def models(self) -> tuple[Model, ...]:
        return () if self.weak is None else (self.weak,)

    def evaluations(self, steps: int) -> int:
        """The weak model answers wherever the denoiser does."""
        return steps

    def cost(self, cost: SampleCost) -> None:
        cost.forward += cost.flops_of_stage("weak_model")

    def wrap(self, denoise: Denoise) -> Denoise:
        assert self.weak is not None
        strong = one_of_pair(denoise, "strong")
        if self.scale == 1:  # every condition is a ModelPair all the same
            return strong
        return autoguided(strong, one_of_pair(self.weak.denoise, "weak"), self.scale)


def one_of_pair(denoise: Denoise, which: str) -> Denoise:
    """`denoise` for calls whose condition is a `ModelPair`: it reads the half `which`."""

    def denoise_half(zt_BCHW: Tensor, t_B: Tensor, cond: ModelPair) -> Prediction:
        return denoise(zt_BCHW, t_B, getattr(cond, which))

    return denoise_half


def autoguided(denoise: Denoise, weak: Denoise, scale: float, correction: Correction | None = None) -> Denoise:
    """Autoguidance: eps = eps_weak + scale · (eps - eps_weak), away from a worse model of the same data and condition
    (Karras et al. 2024, arXiv 2406.02507): smaller, or an earlier snapshot.

    Both answer the same condition. Scale 1 returns `denoise` itself. Raises ValueError for a negative scale.
    """
    if scale < 0:
        raise ValueError(f"the scale of autoguidance must be at least 0 (1 is none); got {scale}")
    if scale == 1:
        return denoise

    def autoguided_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        strong = denoise(zt_BCHW, t_B, cond)
        further = away_from(strong, weak(zt_BCHW, t_B, cond), scale)
        return further if correction is None else correction(further, strong, zt_BCHW, t_B)

    return autoguided_denoise
