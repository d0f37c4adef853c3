"""Order of convergence, measured: the probability-flow ODE of a Gaussian mixture has a closed solution in one dimension."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Cosine, Level, Schedule
from ldmlab.samplers.ddim import DDIM, ddim
from ldmlab.samplers.dpmpp_2m import DPMpp2M, dpmpp_2m
from ldmlab.samplers.euler import Euler, euler
from ldmlab.samplers.heun import Heun, heun
from ldmlab.samplers.plms import PLMS, plms
from ldmlab.samplers.unipc import UniPC, unipc

WEIGHT = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEAN = torch.tensor([-1.2, 0.8], dtype=torch.float64)
SPREAD = torch.tensor([0.5, 0.3], dtype=torch.float64)


class Smooth(NamedTuple):
    """lambda = log(alpha / sigma) goes smoothly, not linearly, from -3 at t = T-1 to 2 at t = 0."""

    T: int

    def at(self, t: int) -> Level:
        u = 1 - t / (self.T - 1)
        half_log_snr = -3 + 4 * u + u**2
        return Level((1 / (1 + math.exp(-2 * half_log_snr))) ** 0.5, (1 / (1 + math.exp(2 * half_log_snr))) ** 0.5)


def noisy_mixture(level: Level) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the mixture's parts in z_t."""
    return level.alpha * MEAN, (level.alpha**2 * SPREAD**2 + level.sigma**2).sqrt()


def exact(schedule: Any) -> Callable[[Tensor, Tensor, Any], Prediction]:
    """The best denoiser, E[z_0 | z_t], coordinate by coordinate."""

    def denoise(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        level = schedule.at(int(t_B[0]))
        mean, spread = noisy_mixture(level)
        off = z[..., None] - mean
        share = torch.softmax(WEIGHT.log() - spread.log() - off**2 / (2 * spread**2), dim=-1)
        z0 = (share * (MEAN + level.alpha * SPREAD**2 / spread**2 * off)).sum(-1)
        return Prediction(z0, (z - level.alpha * z0) / level.sigma)

    return denoise


def share_below(z: Tensor, level: Level) -> Tensor:
    mean, spread = noisy_mixture(level)
    return (WEIGHT * torch.special.ndtr((z[..., None] - mean) / spread)).sum(-1)


def carried(z: Tensor, start: Level, end: Level) -> Tensor:
    """Where the flow takes z: in one dimension paths do not cross, so the share of the data below z stays. Bisection."""
    share = share_below(z, start)
    low, high = torch.full_like(z, -8.0), torch.full_like(z, 8.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = share_below(middle, end) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


Z = torch.linspace(-2.0, 2.0, 32, dtype=torch.float64).view(2, 1, 4, 4)
RULES = {"ddim": (ddim, 1), "euler": (euler, 1), "heun": (heun, 2), "plms": (plms, 2), "dpmpp_2m": (dpmpp_2m, 2),
         "unipc": (unipc, 2)}  # fmt: skip


def no_noise() -> Tensor:
    raise AssertionError("the ODE draws nothing")


@pytest.mark.parametrize("name", RULES)
def test_error_falls_with_the_order_of_the_rule(name: str) -> None:
    rule, order = RULES[name]
    errors = []
    for steps in (40, 80, 160):
        schedule = Smooth(steps + 1)
        found = rule(exact(schedule), Z, list(range(steps, -1, -1)), schedule, None, no_noise)
        errors.append(float((found - carried(Z, schedule.at(steps), schedule.at(0))).abs().mean()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(order - 0.3 < slope < order + 0.6 for slope in slopes), slopes
    assert abs(slopes[-1] - order) < abs(slopes[0] - order) + 0.1


def test_at_twenty_evaluations_second_order_beats_ddim() -> None:
    """On the grid that sampling uses, down to the data, from exactly the noise that the data become."""
    schedule = Cosine()
    wanted = carried(Z, schedule.at(999), Level(1.0, 0.0))

    def error(sampler: Any) -> float:
        return float((sampler(exact(schedule), Z, schedule, None, no_noise) - wanted).abs().mean())

    for sampler, evaluations_of_ddim in ((DPMpp2M(20), 50), (UniPC(20), 50), (Heun(10), 20)):
        assert sampler.evaluations <= 20 and error(sampler) < error(DDIM(evaluations_of_ddim)), sampler


SAMPLERS = [DDIM, Euler, Heun, PLMS, DPMpp2M, UniPC]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("grid", "steps"), [("trailing", 1), ("trailing", 7), ("official", 1), ("official", 10)])
def test_evaluations_are_counted_as_they_happen(sampler: Any, grid: str, steps: int) -> None:
    schedule, asked = Cosine(), []

    def counted(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        asked.append(int(t_B[0]))
        return exact(schedule)(z, t_B, cond)

    chosen = sampler(steps, grid=grid)
    found = chosen(counted, Z, schedule, None, no_noise)
    assert len(asked) == chosen.evaluations and min(asked) >= 0 and found.isfinite().all()


class NoSignal(NamedTuple):
    """The cosine schedule, with nothing left of the data at its last time (zero terminal signal-to-noise ratio)."""

    inner: Schedule
    T: int

    def at(self, t: int) -> Level:
        return Level(0.0, 1.0) if t == self.T - 1 else self.inner.at(t)


@pytest.mark.parametrize("sampler", [DDIM(50), Heun(20), PLMS(50), DPMpp2M(20), DPMpp2M(20, eta=1.0), UniPC(20)])
def test_a_start_without_any_signal_is_no_trouble(sampler: Any) -> None:
    schedule = NoSignal(Cosine(), 1000)
    generator = torch.Generator().manual_seed(0)
    found = sampler(exact(schedule), Z, schedule, None, lambda: torch.randn(Z.shape, generator=generator).double())
    assert found.isfinite().all() and 0.3 < float(found.std()) < 1.5
