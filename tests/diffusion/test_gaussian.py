"""A Gaussian as a denoiser: moments of its draws, the way of any sampler that ends where it draws, sums that go on after a stop."""

import math

import pytest
import torch
from torch import Tensor

from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.one_hot import OneHot
from ldmlab.diffusion.gaussian import ClassMoments, Gaussian, GaussianDenoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.paths import Flow
from ldmlab.diffusion.schedules import LinearSqrtBeta
from ldmlab.errors import ConfigError
from ldmlab.samplers.ddim import DDIM
from ldmlab.samplers.heun import Heun

SHAPE = (2, 2, 2)
D, K = math.prod(SHAPE), 3
GENERATOR = torch.Generator().manual_seed(0)
MIX_DD = torch.randn(D, D, generator=GENERATOR, dtype=torch.float64) / D**0.5
MEAN_KD = torch.randn(K, D, generator=GENERATOR, dtype=torch.float64)


def data(n: int) -> tuple[Tensor, Tensor]:
    """Latents and classes, of which the last is rare."""
    label_B = torch.arange(n) % 7 % K
    noise = torch.randn(n, D, generator=GENERATOR, dtype=torch.float64)
    return (MEAN_KD[label_B] + noise @ MIX_DD.T).view(n, *SHAPE), label_B


def fitted(n: int = 40_000) -> GaussianDenoiser:
    z, label_B = data(n)
    moments = ClassMoments(K, D)
    moments.update(z, label_B)
    network = Gaussian(SHAPE[0], SHAPE[0], None, K, SHAPE[1])
    network.fit(moments)
    return GaussianDenoiser(network, OneHot(K))


def test_draws_have_the_moments_of_their_class() -> None:
    model, n = fitted(), 40_000
    for k in range(K):
        cond = model.condition({"label": torch.full((n,), k)})
        drawn = model.network.draw(torch.randn(n, *SHAPE, generator=GENERATOR), cond).flatten(1).double()
        torch.testing.assert_close(drawn.mean(0), MEAN_KD[k], rtol=0, atol=0.05)
        torch.testing.assert_close(drawn.T.cov(), MIX_DD @ MIX_DD.T, rtol=0, atol=0.05)


@pytest.mark.parametrize("sampler", [DDIM(steps=400), Heun(steps=50)])
def test_a_sampler_ends_where_it_draws(sampler: DDIM | Heun) -> None:
    """Deterministic, from the same noise, on a schedule that ends without signal; finer steps come nearer."""
    model, objective = fitted(), Objective("flow", Flow())
    noise = torch.randn(64, *SHAPE, generator=GENERATOR)
    cond = model.condition({"label": torch.arange(64) % K})
    denoise = model.denoise(objective)
    drawn = model.sampler(denoise, noise, objective.schedule, cond, None)

    def off(steps: int) -> float:
        chosen = type(sampler)(steps=steps)
        return float((chosen(denoise, noise, objective.schedule, cond, lambda: noise) - drawn).square().mean().sqrt())

    assert off(sampler.steps) < 0.02 * float(drawn.std()) and off(sampler.steps) < 0.6 * off(sampler.steps // 2)


def test_denoising_is_regression_on_the_noisy_latent() -> None:
    model, objective, n = fitted().double(), Objective("eps", LinearSqrtBeta()), 40_000
    z0, label_B = data(n)
    t_B, eps = torch.full((n,), 500), torch.randn(z0.shape, generator=GENERATOR, dtype=torch.float64)
    zt = objective.schedule.zt(z0, eps, t_B)
    onehot_BK = torch.nn.functional.one_hot(label_B, K).double()
    predicted = model.denoise(objective)(zt, t_B, Cond(vector_BD=onehot_BK))
    seen = torch.cat([zt.flatten(1), onehot_BK], dim=1)
    best = seen @ torch.linalg.lstsq(seen, z0.flatten(1)).solution
    assert float((predicted.z0.flatten(1) - best).square().mean().sqrt()) < 0.02 * float(z0.std())
    alpha, sigma = objective.schedule.at(500)
    torch.testing.assert_close(alpha * predicted.z0 + sigma * predicted.eps, zt)


def test_sums_go_on_bit_for_bit() -> None:
    z, label_B = data(600)
    noise = torch.rand(600, *SHAPE, generator=GENERATOR)
    unbroken, first, second = (ClassMoments(K, D) for _ in range(3))
    parts = list(zip(z.split(100), label_B.split(100), noise.split(100), strict=True))
    for part in parts:
        unbroken.update(*part)
    for part in parts[:2]:
        first.update(*part)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for part in parts[2:]:
        second.update(*part)
    assert torch.equal(unbroken.within_DD(), second.within_DD()) and torch.equal(unbroken.mean_KD(), second.mean_KD())


def test_within_and_between_classes_make_the_covariance_of_all() -> None:
    """With the noise of a posterior on the diagonal, as its samples have it."""
    z, label_B = data(6000)
    noise = torch.rand(6000, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    moments, plain = ClassMoments(K, D), ClassMoments(None, D)
    moments.update(z, label_B, noise)
    plain.update(z, None, noise)
    share_K, mean_KD = moments.count_K / 6000, moments.mean_KD()
    off_KD = mean_KD - share_K @ mean_KD
    total_DD = moments.within_DD() + (off_KD * share_K[:, None]).T @ off_KD
    torch.testing.assert_close(total_DD, plain.within_DD())
    own = z.flatten(1).T.cov(correction=0) + noise.flatten(1).mean(0).diag()
    torch.testing.assert_close(total_DD, own)


def test_a_class_without_images_has_the_mean_of_all() -> None:
    z, label_B = data(50)
    moments = ClassMoments(K + 1, D)
    moments.update(z, label_B)
    torch.testing.assert_close(moments.mean_KD()[K], z.flatten(1).mean(0))


def test_too_many_numbers_are_refused() -> None:
    with torch.device("meta"):
        network = Gaussian(3, 3, None, None, 64)
    with pytest.raises(ConfigError, match=r"3x64x64 = 12288 numbers.*at most 8192\. Use a first stage with a larger f"):
        network.check_latent(64, 64)
