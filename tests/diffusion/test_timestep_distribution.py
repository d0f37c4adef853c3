"""Distributions of t: quantiles, order, and batches that are spread evenly however they are cut."""

import math

import pytest
import torch

from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.paths import Flow, Karras
from ldmlab.diffusion.schedules import LinearSqrtBeta, Schedule
from ldmlab.diffusion.timestep_distribution import LogitNormal, LogNormal, TimestepDistribution, Uniform
from ldmlab.errors import ConfigError
from ldmlab.randomness import Draws, stratified

U = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # evenly spread: their times are the distribution


def phi(x: float) -> float:
    return (1 + math.erf(x / 2**0.5)) / 2


def test_uniform_times_are_whole_and_as_often() -> None:
    objective = Objective("eps", LinearSqrtBeta())
    u = torch.tensor([0.0, 0.0009, 0.001, 0.5, 1 - 2**-24])
    assert objective.t(u).tolist() == [0, 0, 1, 500, 999]
    counts = torch.bincount(objective.t(torch.arange(100_000) / 100_000), minlength=1000)
    assert counts.min() >= 99 and counts.max() <= 101


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7)])
def test_logit_normal_has_its_distribution(mean: float, std: float) -> None:
    t = LogitNormal(mean, std).t(U, Flow())
    for tau in (0.1, 0.3, 0.5, 0.8):
        expected = phi((math.log(tau / (1 - tau)) - mean) / std)
        assert float((t < 1000 * tau).double().mean()) == pytest.approx(expected, abs=1e-4)


def test_log_normal_has_its_distribution() -> None:
    schedule = Karras()
    t = LogNormal(-1.2, 1.2).t(U, schedule)
    log = (schedule.sigma(t, torch.float64) / schedule.alpha(t, torch.float64)).log()
    assert float(log.mean()) == pytest.approx(-1.2, abs=2e-3) and float(log.std()) == pytest.approx(1.2, abs=2e-3)
    for level in (-3.0, -1.2, 0.5):
        assert float((log < level).double().mean()) == pytest.approx(phi((level + 1.2) / 1.2), abs=6e-3)  # cells


@pytest.mark.parametrize("schedule", [LinearSqrtBeta(), Flow(), Karras(T=17)])
@pytest.mark.parametrize("times", [Uniform(), LogitNormal(), LogNormal()])
def test_times_stay_inside_and_never_fall(times: TimestepDistribution, schedule: Schedule) -> None:
    u = torch.cat([torch.zeros(1, dtype=torch.float64), U, torch.full((1,), 1 - 2**-53, dtype=torch.float64)])
    t = times.t(u, schedule)
    assert t.dtype == torch.int64 and (t.diff() >= 0).all() and t[0] >= 0 and t[-1] < schedule.T


def test_stratified_times_are_spread_over_each_batch_and_by_position_alone() -> None:
    draws, n = Draws(3), 24
    whole = stratified(draws, "t", torch.arange(0, 10 * n), n)
    strata = (whole.reshape(10, n) * n).floor().long().sort(dim=1).values
    assert torch.equal(strata, torch.arange(n).expand(10, n))  # one in each 24th, in each batch
    for cut in (1, 5, 8, n, 3 * n):
        assert torch.equal(whole, torch.cat([stratified(draws, "t", p, n) for p in torch.arange(10 * n).split(cut)]))
    starts = stratified(draws, "t", torch.arange(4000 * n), n)[::n]  # uniform over batches
    assert abs(float(starts.mean()) - 0.5) < 5 / (12 * 4000) ** 0.5
    objective = Objective("eps", LinearSqrtBeta(), stratified=True)
    assert torch.equal(objective.u(draws, torch.arange(n, 2 * n), n), whole[n : 2 * n])
    plain = Objective("eps", LinearSqrtBeta()).u(draws, torch.arange(n), n)
    assert torch.equal(plain, draws.rand("t", torch.arange(n), (), "cpu"))


def test_a_spread_of_nothing_is_named() -> None:
    for times in (LogitNormal, LogNormal):
        with pytest.raises(ConfigError, match=r"objective\.times\.std must be greater than 0; got 0"):
            times(0.0, 0.0)
