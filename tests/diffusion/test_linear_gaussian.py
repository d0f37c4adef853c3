"""The best linear denoiser: least squares reaches its loss and never falls below, whatever is predicted and however it is weighted."""

import math

import pytest
import torch
from torch import Tensor

from ldmlab.autoencoders.linear_path import Moments
from ldmlab.diffusion.linear_gaussian import (
    Stationary,
    Whole,
    gain,
    loss_floor,
    over_training,
    z0_error,
    z0_error_of,
)
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.paths import Flow, Karras
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta
from ldmlab.diffusion.targets import EDM
from ldmlab.diffusion.timestep_distribution import LogitNormal
from ldmlab.diffusion.weightings import MinSNR

SHAPE = (2, 2, 3)  # C, H, W
D = math.prod(SHAPE)
GENERATOR = torch.Generator().manual_seed(0)
MIX_DD = torch.randn(D, D, generator=GENERATOR, dtype=torch.float64) / D**0.5
MEAN_D = torch.randn(D, generator=GENERATOR, dtype=torch.float64)
OBJECTIVES = {
    "eps": Objective("eps", LinearSqrtBeta()),
    "v": Objective("v", Cosine(), weighting=MinSNR()),
    "z0": Objective("z0", LinearSqrtBeta()),
    "flow": Objective("flow", Flow()),
    "edm": Objective(EDM(), Karras()),
}


def normal(n: int, size: int = D) -> Tensor:
    return torch.randn(n, size, generator=GENERATOR, dtype=torch.float64)


def latents(n: int) -> Tensor:
    """[n, C, H, W] of covariance MIX MIXᵀ."""
    return (normal(n) @ MIX_DD.T + MEAN_D).view(n, *SHAPE)


def known() -> Whole:
    """The true moments: no latents, no error of estimation."""
    moments = Moments(D)
    moments.count, moments.sum_P = 1, MEAN_D
    moments.product_PP = MIX_DD @ MIX_DD.T + MEAN_D[:, None] * MEAN_D
    return Whole(moments, SHAPE)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("t", [20, 400, 900])
def test_least_squares_reaches_the_floor_and_not_below(name: str, t: int) -> None:
    """A linear network, fitted to 20 000 latents, on 20 000 others, through the objective's own inputs, target and loss."""
    objective, n = OBJECTIVES[name], 20_000
    t_B = torch.full((n,), t)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        z0_BCHW, eps_BCHW = latents(n), normal(n).view(n, *SHAPE)
        shown_BCHW = objective.inputs(objective.schedule.zt(z0_BCHW, eps_BCHW, t_B), t_B)[0]
        return torch.cat([shown_BCHW.flatten(1), torch.ones(n, 1)], dim=1), z0_BCHW, eps_BCHW

    shown, z0, eps = batch()
    weights = torch.linalg.lstsq(shown, objective.target_of(z0, eps, t_B).flatten(1)).solution
    shown, z0, eps = batch()
    loss_B = objective.loss((shown @ weights).view(n, *SHAPE), z0, eps, t_B)
    floor, spread = float(loss_floor(known(), objective)[t]), float(loss_B.std()) / n**0.5
    assert floor - 4 * spread < float(loss_B.mean()) < floor * (1 + 3 * D / n) + 4 * spread
    assert spread < 0.02 * floor  # so that the above says something


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_other_distances_of_gaussian_latents(loss: str) -> None:
    objective = Objective("eps", LinearSqrtBeta(), loss=loss, delta=0.3)  # type: ignore[arg-type]
    n, t, found = 40_000, 300, known()
    alpha, sigma = (torch.tensor(x, dtype=torch.float64) for x in objective.schedule.at(t))
    z0, eps, t_B = latents(n), normal(n).view(n, *SHAPE), torch.full((40_000,), t)
    zt = objective.schedule.zt(z0, eps, t_B)
    along = (zt.flatten(1) - alpha * MEAN_D) @ found.basis_DD.T * gain(found.variance_D, alpha, sigma)
    expected = MEAN_D + along @ found.basis_DD
    answer = ((zt.flatten(1) - alpha * expected) / sigma).view(n, *SHAPE)
    loss_B = objective.loss(answer, z0, eps, t_B)
    assert float(loss_floor(found, objective)[t]) == pytest.approx(
        float(loss_B.mean()), abs=4 * float(loss_B.std()) / n**0.5
    )


def test_nothing_of_white_noise_can_be_predicted() -> None:
    """v of white noise is independent of z_t: its loss is 1 at every time."""
    moments = Moments(D)
    moments.count, moments.product_PP = 1, torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(
        loss_floor(Whole(moments, SHAPE), Objective("v", Cosine())), torch.ones(1000, dtype=torch.float64)
    )


def stationary(n: int, size: int = 8) -> Tensor:
    """Two mixed channels of filtered noise that repeats beyond its edges: [n, 2, size, size]."""
    noise = torch.randn(n, 2, size, size, generator=GENERATOR, dtype=torch.float64)
    smooth = noise + 0.8 * noise.roll(1, 3) + 0.5 * noise.roll(1, 2)
    return torch.stack([smooth[:, 0], 0.6 * smooth[:, 0] + 0.8 * smooth[:, 1].roll(2, 2)], dim=1)


def test_plane_waves_are_the_directions_of_a_stationary_latent() -> None:
    z = stationary(20_000)
    waves = Stationary((2, 8, 8))
    for part in z.split(3000):
        waves.update(part)
    waves.finish()
    moments = Moments(128)
    moments.update(z.flatten(1))
    whole = Whole(moments, (2, 8, 8))
    torch.testing.assert_close(waves.variance_D.sort().values, whole.variance_D.sort().values, rtol=0.15, atol=0.01)
    one, other = (loss_floor(found, OBJECTIVES["v"]) for found in (waves, whole))
    torch.testing.assert_close(one, other, rtol=0.01, atol=0)
    for found in (waves, whole):
        power = found.power(z)
        torch.testing.assert_close(power.sum(1), (z - z.mean(0)).flatten(1).square().sum(1))  # nothing is lost
        torch.testing.assert_close(power.mean(0), found.variance_D, rtol=1e-6, atol=1e-9)
        channel = found.per_element(found.variance_D[None]).view(2, -1).mean(1)
        torch.testing.assert_close(channel, z.var(dim=0, correction=0).mean(dim=(1, 2)), rtol=1e-9, atol=0)
        torch.testing.assert_close(channel.mean(), z.var(dim=0, correction=0).mean(), rtol=1e-9, atol=0)


def test_a_latent_that_is_not_stationary_is_denoised_better_by_all_directions() -> None:
    z = latents(20_000)
    waves = Stationary(SHAPE)
    waves.update(z)
    assert (loss_floor(waves.finish(), OBJECTIVES["v"]) > loss_floor(known(), OBJECTIVES["v"])).all()


def test_noise_of_a_posterior_counts_as_its_samples_do() -> None:
    z, noise = stationary(20_000), torch.rand(20_000, 2, 8, 8, generator=GENERATOR, dtype=torch.float64)
    drawn = z + noise.sqrt() * torch.randn(noise.shape, generator=GENERATOR, dtype=torch.float64)
    sampled, stated = Stationary((2, 8, 8)), Stationary((2, 8, 8))
    sampled.update(drawn)
    stated.update(z, noise)
    one, other = sampled.finish().variance_D, stated.finish().variance_D
    assert float(one.sum()) == pytest.approx(float(other.sum()), rel=0.01)


def test_error_of_given_latents() -> None:
    """Expected over the noise it is what drawing noise gives; of latents with the fitted variances it is the closed form."""
    found, z = known(), latents(3)
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    many = z.repeat_interleave(20_000, 0).flatten(1)
    zt = alpha * many + sigma * normal(len(many))
    along = (zt - alpha * MEAN_D) @ found.basis_DD.T * gain(found.variance_D, alpha, sigma)
    error = (MEAN_D + along @ found.basis_DD - many).square().mean(1).view(3, -1).mean(1)
    torch.testing.assert_close(z0_error_of(found.power(z), found.variance_D, alpha, sigma), error, rtol=0.02, atol=0)
    closed = z0_error(found.variance_D, alpha, sigma).mean()
    torch.testing.assert_close(z0_error_of(found.variance_D[None], found.variance_D, alpha, sigma)[0], closed)


def test_means_over_training_follow_the_distribution_of_t() -> None:
    value_T = torch.arange(1000, dtype=torch.float64)
    mean, parts = over_training(value_T, Objective("v", Cosine()), 4)
    assert mean == pytest.approx(499.5, abs=0.5) and parts == pytest.approx([124.5, 374.5, 624.5, 874.5], abs=0.5)
    mean, parts = over_training(value_T, Objective("v", Cosine(), times=LogitNormal()), 4)
    u = torch.rand(100_000, generator=GENERATOR, dtype=torch.float64)
    assert mean == pytest.approx(float(value_T[LogitNormal().t(u, Cosine())].mean()), rel=0.01)
    assert parts[0] > 200 and parts[3] < 800  # the middle more often
