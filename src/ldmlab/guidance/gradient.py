"""Guidance by a gradient: a denoise callable pushed up the slope of a log-probability that is not the network's own.

    eps' = eps - scale · sigma · ∇ log p        (Dhariwal & Nichol 2021, Algorithm 2)

With z_t = alpha z_0 + sigma eps, z_0' = z_0 + scale · sigma² / alpha · ∇ log p: the mean moves up the slope. (The paper's
Eq. 16 prints a plus; with eps the added noise, the minus is right: docs/paper.md#guidance.)

The true gradient vanishes with alpha, for z_T says nothing of z_0; a learnt one does not quite, and sigma² / alpha magnifies
what is left without bound where a schedule ends at alpha = 0 (cosine: 2e4). Hence the intervals of `stack.py`.

Shape letters: B batch, C channels, H W space, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Schedule

Classifier = Callable[[Tensor, Tensor], Tensor]  # (z_t [B, C, H, W], t_B) → logits [B, K]
LogP = Callable[[Tensor], Tensor]  # z_0 [B, C, H, W] → log-probability of each image [B], up to a constant


def classifier_guided(
    denoise: Denoise, classifier: Classifier, label_B: Tensor, scale: float, schedule: Schedule
) -> Denoise:
    """Pushed towards a class by a classifier of noisy latents: log p = log softmax(logits)[label] (LDM-8-G).

    Args:
        denoise: the callable to guide, conditional or not.
        classifier: knows every noise level; it alone is differentiated, the denoiser is not.
        label_B: class of each image, int64, 0 … K-1.
        scale: of the gradient, at least 0; 1 is Bayes' rule.
        schedule: the denoiser's. Where alpha is 0 nothing is added: z_t says nothing of the class.
    """

    def guided_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        predicted = denoise(zt_BCHW, t_B, cond)
        with torch.enable_grad():
            leaf_BCHW = zt_BCHW.detach().requires_grad_()
            log_p_BK = torch.log_softmax(classifier(leaf_BCHW, t_B), dim=1)
            total = log_p_BK.gather(1, label_B[:, None]).sum()
        return _pushed(predicted, torch.autograd.grad(total, leaf_BCHW)[0], scale, t_B, schedule)

    return guided_denoise


def image_guided(denoise: Denoise, log_p: LogP, scale: float, schedule: Schedule) -> Denoise:
    """Pushed towards an image by the predicted z_0 (paper, App. C): the gradient of log_p(z_0(z_t)) runs through the
    denoiser and what it is wrapped in, so that one call costs a backward pass of all of it.

    Args:
        denoise: the callable to guide; differentiable in z_t.
        log_p: of z_0 (`resembles`).
        scale: of the gradient, at least 0.
        schedule: the denoiser's. Where alpha is 0 nothing is added.
    """

    def guided_denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        inner = zt_BCHW.requires_grad  # inside another guidance by gradients, whose graph must stay whole
        with torch.enable_grad():
            leaf_BCHW = zt_BCHW if inner else zt_BCHW.detach().requires_grad_()
            predicted = denoise(leaf_BCHW, t_B, cond)
            total = log_p(predicted.z0).sum()
        gradient_BCHW = torch.autograd.grad(total, leaf_BCHW, retain_graph=inner)[0]
        if not inner:
            predicted = Prediction(predicted.z0.detach(), predicted.eps.detach())
        return _pushed(predicted, gradient_BCHW, scale, t_B, schedule)

    return guided_denoise


def resembles(
    target_BCHW: Tensor, decode: Callable[[Tensor], Tensor], transform: Callable[[Tensor], Tensor] | None = None
) -> LogP:
    """The log-probability of App. C: -1/2 ‖y - T(D(z_0))‖², summed over the elements of each image.

    Args:
        target_BCHW: y, of the size that T gives; images in the decoder's range [-1, 1].
        decode: D, latents to images (or the identity, to compare latents).
        transform: T, differentiable: down-sampling, a mask; None is the identity.
    """

    def log_p(z0_BCHW: Tensor) -> Tensor:
        image_BCHW = decode(z0_BCHW)
        seen_BCHW = image_BCHW if transform is None else transform(image_BCHW)
        return -0.5 * (target_BCHW - seen_BCHW).square().flatten(1).sum(dim=1)

    return log_p


def _pushed(predicted: Prediction, gradient_BCHW: Tensor, scale: float, t_B: Tensor, schedule: Schedule) -> Prediction:
    alpha_B, sigma_B = (level(t_B, gradient_BCHW.dtype) for level in (schedule.alpha, schedule.sigma))
    push_BCHW = torch.where(alpha_B > 0, scale * sigma_B, 0.0)[:, None, None, None] * gradient_BCHW
    ratio_B111 = (sigma_B / torch.where(alpha_B > 0, alpha_B, 1.0))[:, None, None, None]
    return Prediction(predicted.z0 + ratio_B111 * push_BCHW, predicted.eps - push_BCHW)
