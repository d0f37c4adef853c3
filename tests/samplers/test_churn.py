"""Churn of Heun's sampler against Algorithm 2 of Karras et al. 2022, written in their variables, on Gaussian data."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta, Schedule
from ldmlab.errors import ConfigError
from ldmlab.samplers.grid import times
from ldmlab.samplers.heun import Churn, Heun

SPREAD = 0.5  # of the data, N(0, SPREAD²)


def exact(schedule: Schedule) -> Any:
    def denoise(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        alpha, sigma = schedule.at(int(t_B[0]))
        z0 = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * z
        return Prediction(z0, (z - alpha * z0) / sigma)

    return denoise


def variance(schedule: Schedule, grid: list[int], churn: float, low: float, high: float, s_noise: float) -> float:
    """Of the samples, exactly: every line of Algorithm 2 is linear in x here. Its sigma is our sigma / alpha."""
    ratio = [schedule.at(t).sigma / schedule.at(t).alpha for t in range(schedule.T)]
    of = lambda t: 0.0 if t < 0 else ratio[t]  # noqa: E731
    slope = lambda s: s / (SPREAD**2 + s**2)  # noqa: E731  (x - D(x; s)) / s = x · slope
    v = 1 / schedule.at(grid[0]).alpha ** 2  # x = z / alpha, z ~ N(0, 1)
    for t, after in itertools.pairwise(grid):
        s, s_next = of(t), of(after)
        gamma = min(churn / (len(grid) - 1), math.sqrt(2) - 1) if low <= s <= high else 0.0
        s_hat = min(ratio, key=lambda r: abs(r - (1 + gamma) * s))  # round_sigma
        v += (s_hat**2 - s**2) * s_noise**2
        euler = 1 + (s_next - s_hat) * slope(s_hat)
        if s_next > 0:
            euler = 1 + (s_next - s_hat) * (slope(s_hat) + slope(s_next) * euler) / 2
        v *= euler**2
    return v


def sampled(schedule: Schedule, sampler: Heun) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(20, 4, 32, 32, generator=generator, dtype=torch.float64)

    return sampler(exact(schedule), noise(), schedule, None, noise)


@pytest.mark.parametrize(
    ("churn", "low", "high", "s_noise"), [(0, 0, None, 1), (8, 0, None, 1), (30, 0.1, 5.0, 1), (10, 0.05, 50.0, 1.05)]
)
def test_the_variance_is_algorithm_2_s(churn: float, low: float, high: float | None, s_noise: float) -> None:
    schedule, steps = LinearSqrtBeta(), 20
    z0 = sampled(schedule, Heun(steps, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=s_noise))
    known = variance(schedule, times(1000, steps, "trailing"), churn, low, high or math.inf, s_noise)
    n = z0.numel()  # 81 920: five standard errors of a variance
    assert float(z0.square().mean()) == pytest.approx(known, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("schedule", [LinearSqrtBeta(), Cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("per_step", [0.0, 0.1, 0.4])
def test_with_many_steps_the_variance_is_the_data_s_however_much_is_churned(
    schedule: Schedule, per_step: float
) -> None:
    """What is left is Heun's own error: at 25 steps a fifth under the linear schedule, without churn too."""
    off = [
        abs(variance(schedule, times(1000, n, "trailing"), n * per_step, 0, 50, 1) / SPREAD**2 - 1) for n in (25, 400)
    ]
    assert off[1] < 0.02 and (off[1] < off[0] / 5 or off[0] < 0.02)


def test_without_churn_nothing_is_drawn_and_nothing_changes() -> None:
    schedule, z = Cosine(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def never() -> Tensor:
        raise AssertionError("Algorithm 1 draws nothing")

    plain = Heun(7)(exact(schedule), z, schedule, None, never)
    assert torch.equal(Heun(7, s_tmin=0.1, s_tmax=3.0, s_noise=1.1)(exact(schedule), z, schedule, None, never), plain)
    assert torch.equal(Heun(7, s_churn=9, s_tmin=1e9)(exact(schedule), z, schedule, None, never), plain)


def test_a_step_goes_back_to_a_time_of_the_schedule() -> None:
    schedule = LinearSqrtBeta()
    t = Churn(1e9).raised(300, schedule, 10)
    ratios = [schedule.at(u).sigma / schedule.at(u).alpha for u in (300, t - 1, t, t + 1)]
    assert abs(ratios[2] / ratios[0] - math.sqrt(2)) < min(abs(r / ratios[0] - math.sqrt(2)) for r in ratios[1::2])
    assert Churn(1e9).raised(999, schedule, 10) == 999  # nothing is noisier


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"s_churn": -1.0}, r"sampler.s_churn must be at least 0 .*got -1"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, r"s_tmin and s_tmax .*got 2.0 and 1.0"),
        ({"s_noise": 0.0}, r"sampler.s_noise must be greater than 0"),
    ],
)
def test_ranges_are_said(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Heun(**options)  # type: ignore[arg-type]
