"""Guidance around the denoise callable: closed forms on Gaussians, identities, costs, and how the wrappers stack."""

from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ldmlab.conditioning.base import Cond
from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Cosine
from ldmlab.guidance.autoguidance import autoguided
from ldmlab.guidance.classifier import classifier_guided
from ldmlab.guidance.classifier_free import classifier_free, guided, rescaling
from ldmlab.guidance.image import image_guided, resembles
from ldmlab.guidance.interval import limited, share_within
from ldmlab.samplers.ddim import DDIM

SCHEDULE = Cosine()
MEAN, SPREAD = (0.7, -0.4), (0.5, 0.9)  # of class 0, and of class 1, "everything" or the weak model
T_B = torch.tensor([30, 300, 700, 900])
Z = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def levels(t_B: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(f(t_B, torch.float64)[:, None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))  # type: ignore


def from_eps(z: Tensor, t_B: Tensor, eps: Tensor) -> Prediction:
    alpha, sigma = levels(t_B)
    return Prediction((z - sigma * eps) / alpha, eps)


def eps_of(z: Tensor, t_B: Tensor, mean: Any, spread: Any) -> Tensor:
    """eps = -sigma ∇ log N(z_t; alpha mean, alpha² spread² + sigma²)."""
    alpha, sigma = levels(t_B)
    return sigma * (z - alpha * mean) / (alpha**2 * spread**2 + sigma**2)


def of_class(which: int) -> Denoise:
    return lambda z, t_B, cond: from_eps(z, t_B, eps_of(z, t_B, MEAN[which], SPREAD[which]))


def labelled(sizes: list[int] | None = None) -> Denoise:
    """Exact for the class that the condition names."""

    def denoise(z: Tensor, t_B: Tensor, cond: Cond) -> Prediction:
        if sizes is not None:
            sizes.append(len(z))
        assert cond.vector_BD is not None
        which = cond.vector_BD[:, 0].long()
        mean, spread = (torch.tensor(v, dtype=z.dtype)[which][:, None, None, None] for v in (MEAN, SPREAD))
        return from_eps(z, t_B, eps_of(z, t_B, mean, spread))

    return denoise


CLASS, NULL = (Cond(vector_BD=torch.full((4, 1), float(k))) for k in (0, 1))


def assert_same(a: Prediction, b: Prediction) -> None:
    torch.testing.assert_close(a.eps, b.eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.z0, b.z0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_guided_gaussians_are_the_gaussian_of_their_product(scale: float) -> None:
    """p_0^w p_1^(1-w) of noisy Gaussians has precision w / v_0 + (1-w) / v_1, at every noise level."""
    alpha, sigma = levels(T_B)
    parts = [
        (w, alpha * m, alpha**2 * s**2 + sigma**2) for w, m, s in zip((scale, 1 - scale), MEAN, SPREAD, strict=True)
    ]
    precision = sum(w / v for w, _, v in parts)
    mean = sum(w * m / v for w, m, v in parts) / precision
    known = from_eps(Z, T_B, sigma * precision * (Z - mean))
    assert_same(guided(labelled(), scale, NULL)(Z, T_B, CLASS), known)
    assert_same(autoguided(of_class(0), of_class(1), scale)(Z, T_B, None), known)


def test_scale_one_of_autoguidance_is_the_callable_itself() -> None:
    plain = of_class(0)
    assert autoguided(plain, of_class(1), 1.0) is plain
    with pytest.raises(ValueError, match="at least 0"):
        autoguided(plain, plain, -1.0)


# ---- interval ------------------------------------------------------------------------------------------------------------


def test_interval_guides_inside_and_costs_nothing_outside() -> None:
    sizes: list[int] = []
    plain = labelled(sizes)
    everywhere = guided(plain, 3.0, NULL)
    ratio_B = SCHEDULE.sigma(T_B, torch.float64) / SCHEDULE.alpha(T_B, torch.float64)

    def called(interval: list[float]) -> tuple[Prediction, list[int]]:
        sizes.clear()
        return limited(everywhere, plain, interval, SCHEDULE)(Z, T_B, CLASS), list(sizes)

    full, none = everywhere(Z, T_B, CLASS), plain(Z, T_B, CLASS)
    for interval, wanted, calls in (([0.0, 1e9], full, [8]), ([1e6, 1e9], none, [4]), ([0.0, 1e-9], none, [4])):
        found, seen = called(interval)
        assert_same(found, wanted)
        assert seen == calls
    low, high = float(ratio_B[0]), float(ratio_B[2])  # (low, high]: the second and the third image
    found, _ = called([low, high])
    within = torch.tensor([False, True, True, False])[:, None, None, None]
    assert_same(found, Prediction(torch.where(within, full.z0, none.z0), torch.where(within, full.eps, none.eps)))
    assert share_within([low, high], SCHEDULE, T_B.tolist()) == 0.5 and share_within(None, SCHEDULE, [0]) == 1


# ---- rescale -------------------------------------------------------------------------------------------------------------


def v_of(p: Prediction) -> Tensor:
    alpha, sigma = levels(T_B)
    return alpha * p.eps - sigma * p.z0


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescale_gives_back_the_spread_of_the_conditional_answer(share: float) -> None:
    plain = labelled()
    full, conditional = guided(plain, 4.0, NULL)(Z, T_B, CLASS), plain(Z, T_B, CLASS)
    found = guided(plain, 4.0, NULL, rescaling(share, SCHEDULE))(Z, T_B, CLASS)
    alpha, sigma = levels(T_B)
    torch.testing.assert_close(alpha * found.z0 + sigma * found.eps, Z)  # still of the same z_t
    diffusers: ModuleType = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    theirs = diffusers.rescale_noise_cfg(v_of(full), v_of(conditional), guidance_rescale=share)
    torch.testing.assert_close(v_of(found), theirs, rtol=1e-9, atol=1e-9)
    if share == 0:
        assert_same(found, full)
    if share == 1:
        torch.testing.assert_close(v_of(found).std(dim=(1, 2, 3)), v_of(conditional).std(dim=(1, 2, 3)))
    assert_same(
        autoguided(of_class(0), of_class(1), 4.0, rescaling(share, SCHEDULE))(Z, T_B, None), found
    )  # the same two models


# ---- gradients -----------------------------------------------------------------------------------------------------------


def classifier(z: Tensor, t_B: Tensor) -> Tensor:
    """Exact for two equally frequent classes: logits log p(z_t | class), the pixels of an image being independent."""
    alpha, sigma = levels(t_B)
    parts = []
    for mean, spread in zip(MEAN, SPREAD, strict=True):
        variance = alpha**2 * spread**2 + sigma**2
        parts.append((-((z - alpha * mean) ** 2) / (2 * variance) - variance.log() / 2).flatten(1).sum(1))
    return torch.stack(parts, dim=1)


def of_both(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
    """The unconditional model: eps = Σ p(class | z_t) eps_class."""
    share = classifier(z, t_B).softmax(1)[..., None, None, None]
    return from_eps(z, t_B, share[:, 0] * of_class(0)(z, t_B, None).eps + share[:, 1] * of_class(1)(z, t_B, None).eps)


def test_classifier_guidance_of_scale_one_is_bayes_rule() -> None:
    label_B = torch.tensor([0, 1, 1, 0])
    known = labelled()(Z, T_B, Cond(vector_BD=label_B[:, None].double()))
    with torch.no_grad():  # as samplers run
        found = classifier_guided(of_both, classifier, label_B, 1.0, SCHEDULE)(Z, T_B, None)
    assert_same(found, known)
    assert not found.z0.requires_grad and not torch.allclose(of_both(Z, T_B, None).eps, known.eps, atol=1e-3)


def test_image_guidance_is_the_chain_rule_and_moves_towards_the_image() -> None:
    """z_0(z_t) of Gaussian data has slope alpha s² / (alpha² s² + sigma²); T D is a matrix here."""
    matrix = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
    mix = lambda z: torch.einsum("dc,bchw->bdhw", matrix, z)  # noqa: E731
    target = torch.full_like(Z, 0.3)
    log_p = resembles(target, lambda z: z, mix)
    plain = of_class(0)
    with torch.no_grad():
        before = plain(Z, T_B, None)
        found = image_guided(plain, log_p, 0.05, SCHEDULE)(Z, T_B, None)
    alpha, sigma = levels(T_B)
    slope = alpha * SPREAD[0] ** 2 / (alpha**2 * SPREAD[0] ** 2 + sigma**2)
    gradient = slope * torch.einsum("dc,bdhw->bchw", matrix, target - mix(before.z0))
    assert_same(found, from_eps(Z, T_B, before.eps - 0.05 * sigma * gradient))
    assert not found.z0.requires_grad
    assert (log_p(found.z0) > log_p(before.z0))[:2].all()  # steps small enough for a slope to be a promise


class NoSignal(NamedTuple):
    """A level at which nothing is left of the data."""

    def alpha(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros(len(t_B), dtype=dtype)

    def sigma(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.ones(len(t_B), dtype=dtype)


def test_without_signal_no_gradient_is_followed() -> None:
    label_B = torch.zeros(4, dtype=torch.long)
    found = classifier_guided(of_both, classifier, label_B, 9.0, NoSignal())(Z, T_B, None)  # type: ignore[arg-type]
    assert_same(found, of_both(Z, T_B, None))


# ---- stacks --------------------------------------------------------------------------------------------------------------


def test_stacks_act_from_the_inside_out() -> None:
    plain, label_B = labelled(), torch.tensor([0, 1, 1, 0])
    log_p = resembles(torch.zeros_like(Z), lambda z: z.tanh())
    free = guided(plain, 2.0, NULL)
    pushed = image_guided(free, log_p, 0.3, SCHEDULE)(Z, T_B, CLASS)
    leaf = Z.clone().requires_grad_()
    gradient = torch.autograd.grad(log_p(free(leaf, T_B, CLASS).z0).sum(), leaf)[
        0
    ]  # of the guided z_0, not of the plain
    _, sigma = levels(T_B)
    assert_same(pushed, from_eps(Z, T_B, free(Z, T_B, CLASS).eps - 0.3 * sigma * gradient))
    # An image inside: both halves of classifier-free guidance are pushed, each by its own z_0. Not the same thing.
    halves = resembles(torch.zeros(8, *Z.shape[1:], dtype=Z.dtype), lambda z: z.tanh())
    inside = guided(image_guided(plain, halves, 0.3, SCHEDULE), 2.0, NULL)(Z, T_B, CLASS)
    assert not torch.allclose(inside.eps, pushed.eps, atol=1e-3)
    # A classifier's push is the same on either side of an image's graph only in eps: its own slope is not differentiated.
    both = image_guided(classifier_guided(free, classifier, label_B, 0.5, SCHEDULE), log_p, 0.3, SCHEDULE)
    assert both(Z, T_B, CLASS).eps.isfinite().all()
    twice = image_guided(image_guided(free, log_p, 0.1, SCHEDULE), log_p, 0.2, SCHEDULE)(Z, T_B, CLASS)
    assert not twice.eps.requires_grad and not torch.allclose(twice.eps, pushed.eps, atol=1e-6)


def test_options_of_a_sampler_make_the_stack() -> None:
    sizes: list[int] = []
    plain = labelled(sizes)
    assert (
        classifier_free(plain, DDIM(guidance=1.0, guidance_interval=[0.0, 9.0], guidance_rescale=0.7), NULL, SCHEDULE)
        is plain
    )
    asked = DDIM(guidance=3.0, guidance_interval=[0.3, 2.0], guidance_rescale=0.7)
    by_hand = limited(guided(plain, 3.0, NULL, rescaling(0.7, SCHEDULE)), plain, [0.3, 2.0], SCHEDULE)
    assert_same(classifier_free(plain, asked, NULL, SCHEDULE)(Z, T_B, CLASS), by_hand(Z, T_B, CLASS))
    assert_same(
        classifier_free(plain, DDIM(guidance=3.0), NULL, SCHEDULE)(Z, T_B, CLASS),
        guided(plain, 3.0, NULL)(Z, T_B, CLASS),
    )
    # Through a sampler: twice the images only at the times inside
    sampler = DDIM(10, guidance=3.0, guidance_interval=[0.3, 2.0])
    sizes.clear()
    sampler(classifier_free(plain, sampler, NULL, SCHEDULE), Z, SCHEDULE, CLASS, lambda: Z)
    share = share_within(sampler.guidance_interval, SCHEDULE, sampler.times(SCHEDULE.T)[:-1])
    assert len(sizes) == 10 and 0 < share < 1 and sum(sizes) == pytest.approx(40 * (1 + share))
