"""From a network that answers as its own paper says, through denoise and DDIM, to the right distribution.

The networks here are exact for data N(MU, S²) and written in their papers' letters: rectified flow sees
x = (1 - τ) z0 + τ eps and τ, EDM sees c_in (z0 + s eps) and ln(s) / 4. They know nothing of alpha and sigma.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmlab.diffusion.denoiser import Denoiser, denoise_with
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.paths import Flow, Karras
from ldmlab.diffusion.rescaled import Shifted, ZeroTerminalSNR
from ldmlab.diffusion.schedules import LinearSqrtBeta
from ldmlab.diffusion.targets import EDM
from ldmlab.samplers.ddim import DDIM, ddim
from ldmlab.samplers.ddpm import DDPM

MU, S = 0.3, 0.5


def posterior(x: Tensor, a: Tensor | float, s: Tensor | float) -> Tensor:
    """E[z0 | a z0 + s eps = x]."""
    return MU + a * S**2 / (a**2 * S**2 + s**2) * (x - a * MU)


class FlowNetwork(nn.Module):
    """E[eps - z0 | x] on the straight line; whole time t is τ = (t + 1) / 1000, before any shift."""

    def __init__(self, shift: float = 1.0):
        super().__init__()
        self.shift = shift

    def at(self, x: Tensor, tau: float) -> Tensor:
        z0 = posterior(x, 1 - tau, tau)
        return (x - z0) / tau

    def forward(self, x: Tensor, t_B: Tensor, cond: Any) -> Tensor:
        tau = (float(t_B[0]) + 1) / 1000
        return self.at(x, self.shift * tau / (1 + (self.shift - 1) * tau))


class EDMNetwork(nn.Module):
    """F = (D - c_skip x) / c_out for the exact D (2206.00364, eq. 7 with Table 1)."""

    def __init__(self, sigma_data: float):
        super().__init__()
        self.sigma_data = sigma_data

    def forward(self, scaled: Tensor, noise_B: Tensor, cond: Any) -> Tensor:
        s = float((4 * noise_B[0]).exp())
        total = s**2 + self.sigma_data**2
        x = scaled * total**0.5
        return (posterior(x, 1.0, s) - self.sigma_data**2 / total * x) / (s * self.sigma_data / total**0.5)


def draws(seed: int) -> Tensor:
    return torch.randn(64, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CASES = [
    (Objective("flow", Flow()), FlowNetwork()),
    (Objective("flow", Shifted(Flow(), 16, base_size=32)), FlowNetwork(0.5)),
    (Objective(EDM(0.5), Karras()), EDMNetwork(0.5)),
    (Objective(EDM(1.0), Karras()), EDMNetwork(1.0)),
]


@pytest.mark.parametrize(("objective", "network"), CASES)
@pytest.mark.parametrize("sampler", [DDIM(200), DDIM(200, eta=1.0), DDPM(200)])
def test_the_right_distribution_comes_out(objective: Objective, network: nn.Module, sampler: DDIM | DDPM) -> None:
    later = iter(range(1, 1000))
    denoise = denoise_with(Denoiser(network, nn.Identity()), objective)
    z0 = sampler(denoise, draws(0), objective.schedule, None, lambda: draws(next(later)))
    # 16 384 numbers: five standard errors, and 2 % for 200 steps
    assert float(z0.mean()) == pytest.approx(MU, abs=5 * S / 128 + 0.01 * S)
    assert float(z0.std()) == pytest.approx(S, rel=5 / 181 + 0.02)


def test_ddim_on_a_flow_is_eulers_method() -> None:
    network, objective, sampler = FlowNetwork(), Objective("flow", Flow()), DDIM(20)
    x = draws(0)
    for t, s in pairwise(sampler.times(1000)):
        x = x + (s - t) / 1000 * network.at(x, (t + 1) / 1000)
    denoise = denoise_with(Denoiser(network, nn.Identity()), objective)
    z0 = sampler(denoise, draws(0), objective.schedule, None, lambda: draws(1))
    torch.testing.assert_close(z0, x, rtol=1e-9, atol=1e-9)


def test_ddim_on_edm_is_eulers_method() -> None:
    # dx / ds = (x - D) / s on the sigmas of eq. 5; 999 / 27 = 37 whole times a step
    sigmas = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 28, dtype=torch.float64) ** 7
    x = draws(0) * (1 + 80**2) ** 0.5
    for s, r in pairwise([*sigmas.tolist(), 0.0]):
        x = x + (r - s) * (x - posterior(x, 1.0, s)) / s
    denoise = denoise_with(Denoiser(EDMNetwork(0.5), nn.Identity()), Objective(EDM(0.5), Karras()))
    z0 = ddim(denoise, draws(0), [*range(999, -1, -37), -1], Karras(), None, lambda: draws(1))
    torch.testing.assert_close(z0, x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("target", ["v", "z0", "flow"])
def test_noise_without_signal_is_where_sampling_starts(target: str) -> None:
    schedule = ZeroTerminalSNR(LinearSqrtBeta())
    objective = Objective(target, schedule)  # type: ignore[arg-type]

    def denoise(z: Tensor, t: Tensor, cond: Any) -> Any:
        alpha, sigma = schedule.at(int(t[0]))
        z0 = posterior(z, alpha, sigma)
        return objective.prediction(objective.target_of(z0, (z - alpha * z0) / sigma, t), z, t)

    z0 = DDIM(200)(denoise, draws(0), schedule, None, lambda: draws(1))
    assert float(z0.mean()) == pytest.approx(MU, abs=5 * S / 128 + 0.01 * S)
    assert float(z0.std()) == pytest.approx(S, rel=5 / 181 + 0.02)
