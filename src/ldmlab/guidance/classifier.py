"""Classifier guidance: along the gradient of a classifier of noisy latents (Dhariwal & Nichol 2021; LDM-8-G).

Shape letters: B batch, C channels, H W space, K classes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Schedule
from ldmlab.diffusion.windows import Windows
from ldmlab.guidance.base import Binding, Guidance, Results, SampleCost, with_interval
from ldmlab.guidance.gradient import Classifier, pushed
from ldmlab.guidance.interval import within


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Guidance by the gradient of a classifier of noisy latents, which is trained in a stage of its own.

    Args:
        scale: of the gradient; 1 is Bayes' rule.
        interval: sigma / alpha where it acts; None: everywhere.
    """

    name: ClassVar[str] = "classifier"
    fields: ClassVar[tuple[str, ...]] = ("label",)
    stages: ClassVar[dict[str, str]] = {"classifier": "noisy_classifier"}

    scale: float
    interval: list[float] | None = None
    classifier: Classifier | None = None
    bound: Binding | None = None

    def options(self) -> dict[str, Any]:
        return with_interval({"scale": self.scale}, self.interval)

    def load(self, results: Results) -> "ClassifierGuidance":
        return self.with_values(classifier=results.stage("noisy_classifier"))

    def cost(self, cost: SampleCost) -> None:
        """A gradient with respect to the input alone costs another forward pass."""
        cost.extra += 2 * cost.evaluations * cost.flops_of_stage("noisy_classifier")

    def wrap(self, denoise: Denoise) -> Denoise:
        assert self.classifier is not None and self.bound is not None
        label_B = self.bound.batch["label"]
        inside = classifier_guided(
            denoise, self.classifier, label_B, self.scale, self.bound.schedule, self.bound.pieces
        )
        return within(inside, denoise, self.interval, self.bound.schedule)


def classifier_guided(
    denoise: Denoise,
    classifier: Classifier,
    label_B: Tensor,
    scale: float,
    schedule: Schedule,
    pieces: Windows | None = None,
) -> Denoise:
    """Pushed towards a class by a classifier of noisy latents: log p = log softmax(logits)[label] (LDM-8-G).

    Args:
        denoise: the callable to guide, conditional or not.
        classifier: knows every noise level; it alone is differentiated, the denoiser is not.
        label_B: class of each image, int64, 0 … K-1.
        scale: of the gradient, at least 0; 1 is Bayes' rule.
        schedule: the denoiser's. Where alpha is 0 nothing is added: z_t says nothing of the class.
        pieces: the classifier sees these windows of a latent larger than it was trained at, and their gradients are averaged: each
            part of the picture is pushed towards the class. None: it sees the whole latent.
    """

    def slope(zt_BCHW: Tensor, t_B: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf_BCHW = zt_BCHW.detach().requires_grad_()
            log_p_BK = torch.log_softmax(classifier(leaf_BCHW, t_B), dim=1)
            total = log_p_BK.gather(1, label_B[:, None]).sum()
        return torch.autograd.grad(total, leaf_BCHW)[0]

    def guided_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        predicted = denoise(zt_BCHW, t_B, cond)
        if pieces is None:
            return pushed(predicted, slope(zt_BCHW, t_B), scale, t_B, schedule)
        (gradient_BCHW,) = pieces.averaged(lambda window: [slope(window.of(zt_BCHW), t_B)], *zt_BCHW.shape[2:])
        return pushed(predicted, gradient_BCHW, scale, t_B, schedule)

    return guided_denoise
