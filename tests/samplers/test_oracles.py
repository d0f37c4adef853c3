"""PLMS, DPM-Solver++, Heun, Euler and UniPC step by step against diffusers, and the SDE form's moments.

Where the rules are not the same: diffusers' Heun always ends at the data, so the official grid is not compared; it takes
the cosine schedule's first step (from s = sigma / alpha of 20 000) by the mean slope, which leaves the data's range; its
PNDM and DPM-Solver++ have "leading" times of their own, so both get our times here. Its tables of sigma are float32 and
are replaced by ours; DPM-Solver++ and Euler also cast z to float32 in each step.
"""

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta, Schedule
from ldmlab.samplers.dpmpp_2m import DPMpp2M
from ldmlab.samplers.euler import Euler
from ldmlab.samplers.grid import times
from ldmlab.samplers.heun import Heun
from ldmlab.samplers.plms import PLMS
from ldmlab.samplers.unipc import UniPC

SHAPE = (2, 3, 4, 4)
SCHEDULES = {"scaled_linear": LinearSqrtBeta(), "cosine": Cosine()}
EXACT, SINGLE = 1e-9, 1e-5  # of the largest value: where theirs stays in float64, where it passes through float32


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


def stream(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def some_z0(z: Tensor, t: int) -> Tensor:
    """A network stand-in that depends on everything and stays in the range of data at every noise level."""
    return torch.tanh(0.7 * z + 0.3 * z.flip(-1)) * (0.5 + t / 2000) + 0.1


def path_of_ours(sampler: Any, schedule: Schedule) -> list[Tensor]:
    path: list[Tensor] = []
    noise = stream(1)

    def denoise(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        alpha, sigma = schedule.at(int(t_B[0]))
        z0 = some_z0(z, int(t_B[0]))
        return Prediction(z0, (z - alpha * z0) / sigma)

    sampler(denoise, next(stream(0)), schedule, None, lambda: next(noise), lambda done, of, z: path.append(z))
    return path


def told(theirs: Any, schedule: Schedule, grid: list[int]) -> list[float]:
    """Give theirs our times and levels; s = sigma / alpha of each."""
    levels = [schedule.at(t) for t in grid]
    theirs.set_timesteps(len(grid) - 1)
    theirs.timesteps = torch.tensor(grid[:-1])
    theirs.sigmas = torch.tensor([sigma / alpha for alpha, sigma in levels], dtype=torch.float64)
    return theirs.sigmas.tolist()


def eps_at(z: Tensor, t: int, schedule: Schedule) -> Tensor:
    alpha, sigma = schedule.at(t)
    return (z - alpha * some_z0(z, t)) / sigma


def assert_paths_agree(ours: list[Tensor], theirs: list[Tensor], limit: float) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= limit * other.abs().max()


@pytest.mark.parametrize("steps", [1, 10, 20])
@pytest.mark.parametrize("grid", ["trailing", "official"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_dpmpp_2m_is_that_of_diffusers(diffusers: ModuleType, name: str, eta: float, grid: Any, steps: int) -> None:
    schedule, visited = SCHEDULES[name], times(1000, steps, grid)
    theirs = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        final_sigmas_type="zero" if grid == "trailing" else "sigma_min",
    )
    told(theirs, schedule, visited)
    noise, z, path = stream(1), next(stream(0)), []
    for t in theirs.timesteps:
        drawn = next(noise) if eta else None
        z = theirs.step(eps_at(z, int(t), schedule), t, z, variance_noise=drawn).prev_sample
        path.append(z)
    assert_paths_agree(path_of_ours(DPMpp2M(steps, eta, grid), schedule), path, SINGLE)


@pytest.mark.parametrize("steps", [1, 2, 10, 20])
@pytest.mark.parametrize("grid", ["trailing", "official"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_unipc_is_that_of_diffusers(diffusers: ModuleType, name: str, grid: Any, steps: int) -> None:
    schedule = SCHEDULES[name]
    theirs = diffusers.UniPCMultistepScheduler(solver_order=2, solver_type="bh2", final_sigmas_type="zero")
    told(theirs, schedule, times(1000, steps, grid))
    z, path = next(stream(0)), []
    for t in theirs.timesteps:
        z = theirs.step(eps_at(z, int(t), schedule), t, z).prev_sample
        path.append(z)
    assert_paths_agree(path_of_ours(UniPC(steps, grid), schedule), path, EXACT)


@pytest.mark.parametrize("steps", [2, 10, 20])
@pytest.mark.parametrize("grid", ["trailing", "official"])
def test_plms_is_pndm_of_diffusers_without_its_runge_kutta_start(diffusers: ModuleType, grid: Any, steps: int) -> None:
    schedule = SCHEDULES["scaled_linear"]
    theirs = diffusers.PNDMScheduler(
        skip_prk_steps=True,
        timestep_spacing="trailing" if grid == "trailing" else "leading",
        steps_offset=1,
    )
    theirs.alphas_cumprod = schedule.alpha_bar_T
    theirs.final_alpha_cumprod = torch.tensor(1.0) if grid == "trailing" else schedule.alpha_bar_T[0]
    theirs.set_timesteps(steps)
    z, path = next(stream(0)), []
    for t in theirs.timesteps:
        z = theirs.step(eps_at(z, int(t), schedule), int(t), z).prev_sample
        path.append(z)
    first, *rest = path[1:]  # theirs also shows the first step's try
    assert_paths_agree(path_of_ours(PLMS(steps, grid), schedule), [first, *rest], EXACT)


@pytest.mark.parametrize("steps", [1, 10, 20])
def test_heun_is_that_of_diffusers(diffusers: ModuleType, steps: int) -> None:
    schedule, visited = SCHEDULES["scaled_linear"], times(1000, steps, "trailing")
    theirs = diffusers.HeunDiscreteScheduler()
    s = told(theirs, schedule, visited)
    twice = [s[0], *(ratio for ratio in s[1:-1] for _ in range(2)), s[-1]]
    theirs.sigmas = torch.tensor(twice, dtype=torch.float64)
    asked = [visited[0], *(t for t in visited[1:-1] for _ in range(2))]
    theirs.timesteps = torch.tensor(asked, dtype=torch.float32)
    x = next(stream(0)) / schedule.at(visited[0]).alpha
    path = []
    for i, t in enumerate(asked):
        x = theirs.step(eps_at(schedule.at(t).alpha * x, t, schedule), theirs.timesteps[i], x).prev_sample
        if i % 2 or i == len(asked) - 1:
            path.append(x * schedule.at(visited[len(path) + 1]).alpha)
    assert_paths_agree(path_of_ours(Heun(steps), schedule), path, EXACT)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("grid", ["trailing", "official"])
def test_euler_is_that_of_diffusers(diffusers: ModuleType, name: str, grid: Any) -> None:
    schedule, visited = SCHEDULES[name], times(1000, 20, grid)
    theirs = diffusers.EulerDiscreteScheduler()
    told(theirs, schedule, visited)
    theirs.timesteps, theirs.is_scale_input_called = theirs.timesteps.float(), True
    x = next(stream(0)) / schedule.at(visited[0]).alpha
    path = []
    for i, (t, s) in enumerate(itertools.pairwise(visited)):
        eps = eps_at(schedule.at(t).alpha * x, t, schedule)
        x = theirs.step(eps, theirs.timesteps[i], x).prev_sample
        path.append(x * schedule.at(s).alpha)
    # float32 x of up to s = 20 000 under cosine: only what is left of that rounding in the end is compared
    limit = SINGLE if name == "scaled_linear" else 1e-2
    assert_paths_agree(path_of_ours(Euler(20, grid), schedule), path, limit)


# Data N(mu, s²): every step is affine in (z, the last predicted z_0), so mean and variance follow by moments alone.
MU, S = 0.7, 0.5


def moments(schedule: Schedule, grid: list[int], eta: float) -> tuple[float, float]:
    """Mean and standard deviation of DPM-Solver++(2M)'s samples from z_T ~ N(0, 1), from the paper's update in lambda."""
    mean, covariance = np.zeros(2), np.diag([1.0, 0.0])
    lambdas = [np.log(a / s) if s > 0 else np.inf for a, s in map(schedule.at, grid)]
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        (alpha, sigma), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
        gain = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
        m, offset = np.array([gain, 0.0]), MU * (1 - gain * alpha)
        h = lambdas[i + 1] - lambdas[i]
        last = sigma_s == 0
        ahead = 0.0 if i == 0 or last else h / (lambdas[i] - lambdas[i - 1]) / 2
        on_z = 0.0 if last else sigma_s / sigma * np.exp(-eta * h)
        on_m = alpha_s * (1.0 if last else 1 - np.exp(-(1 + eta) * h))
        row = on_z * np.array([1.0, 0.0]) + on_m * ((1 + ahead) * m - ahead * np.array([0.0, 1.0]))
        matrix = np.stack([row, m])
        mean = matrix @ mean + np.array([on_m * (1 + ahead) * offset, offset])
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += 0.0 if last else sigma_s**2 * (1 - np.exp(-2 * eta * h))
    return float(mean[0]), float(covariance[0, 0] ** 0.5)


def exact(schedule: Schedule) -> Any:
    def denoise(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        alpha, sigma = schedule.at(int(t_B[0]))
        z0 = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (z - alpha * MU)
        return Prediction(z0, (z - alpha * z0) / sigma)

    return denoise


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_sde_form_has_the_moments_of_its_rule_and_they_become_the_data_s(eta: float) -> None:
    schedule = Cosine()
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(16, 4, 16, 16, generator=generator)

    z0 = DPMpp2M(20, eta)(exact(schedule), noise(), schedule, None, noise)
    mean, spread = moments(schedule, times(1000, 20, "trailing"), eta)
    n = z0.numel()  # 16 384: five standard errors
    assert float(z0.mean()) == pytest.approx(mean, abs=5 * spread / n**0.5)
    assert float(z0.std()) == pytest.approx(spread, abs=5 * spread / (2 * n) ** 0.5)
    off = [
        np.abs(np.subtract(moments(schedule, times(1000, k, "trailing"), eta), (MU, S))).sum() for k in (10, 40, 160)
    ]
    assert off[0] > off[1] > off[2] and off[2] < 0.005, off
