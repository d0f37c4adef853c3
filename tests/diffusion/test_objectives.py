"""Objectives: round trips, diffusers' velocity, distances by hand."""

import pytest
import torch

from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta, Schedule

T_B = torch.tensor([0, 1, 250, 500, 998, 999])


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z0, eps = torch.randn(2, len(T_B), 4, 3, 3, generator=generator, dtype=torch.float64)
    return z0, eps


@pytest.mark.parametrize("schedule", [LinearSqrtBeta(), Cosine()])
@pytest.mark.parametrize("target", ["eps", "v", "z0"])
def test_a_perfect_answer_gives_back_latent_and_noise(target: str, schedule: Schedule) -> None:
    z0, eps = data()
    objective = Objective(target, schedule)  # type: ignore[arg-type]
    zt = schedule.zt(z0, eps, T_B)
    answer = objective.target_of(z0, eps, T_B)
    predicted = objective.prediction(answer, zt, T_B)
    torch.testing.assert_close(predicted.z0, z0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(predicted.eps, eps, rtol=1e-10, atol=1e-10)
    assert not objective.loss(answer, z0, eps, T_B).any()


@pytest.mark.parametrize("target", ["eps", "v", "z0"])
def test_any_answer_is_consistent_and_translates(target: str) -> None:
    # Whatever the network says, z_t = alpha z0 + sigma eps holds, and the answer can be read back from the prediction.
    schedule = LinearSqrtBeta()
    z0, eps = data()
    zt, answer = schedule.zt(z0, eps, T_B), torch.randn_like(z0)
    objective = Objective(target, schedule)  # type: ignore[arg-type]
    predicted = objective.prediction(answer, zt, T_B)
    torch.testing.assert_close(schedule.zt(predicted.z0, predicted.eps, T_B), zt, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(objective.target_of(predicted.z0, predicted.eps, T_B), answer, rtol=1e-9, atol=1e-9)


def test_velocity_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = Cosine()
    theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    theirs.alphas_cumprod = schedule.alpha_bar_T
    z0, eps = data()
    velocity = Objective("v", schedule).target_of(z0, eps, T_B)
    torch.testing.assert_close(velocity, theirs.get_velocity(z0, eps, T_B), rtol=1e-12, atol=1e-12)


def test_distances_by_hand() -> None:
    z0, eps = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, -2.0]]], [[[0.0, 0.0]]]])
    out, t = torch.zeros(2, 1, 1, 2), torch.tensor([3, 4])
    assert Objective("eps", LinearSqrtBeta(), "l2").loss(out, z0, eps, t).tolist() == [2.5, 0.0]
    assert Objective("eps", LinearSqrtBeta(), "l1").loss(out, z0, eps, t).tolist() == [1.5, 0.0]
    low = Objective("eps", LinearSqrtBeta()).loss(out.bfloat16(), z0, eps, t)
    assert low.dtype == torch.float32


def test_times_are_uniform_and_whole() -> None:
    objective = Objective("eps", LinearSqrtBeta())
    u = torch.tensor([0.0, 0.0009, 0.001, 0.5, 1 - 2**-24])
    assert objective.t(u).tolist() == [0, 0, 1, 500, 999]
    counts = torch.bincount(objective.t(torch.arange(100_000) / 100_000), minlength=1000)
    assert counts.min() >= 99 and counts.max() <= 101
