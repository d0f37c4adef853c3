"""Sampling from images and with known pixels, by closed forms for Gaussian data (the exact denoiser is known there)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.rescaled import ZeroTerminalSNR
from ldmlab.diffusion.schedules import LinearSqrtBeta, Schedule
from ldmlab.errors import ConfigError
from ldmlab.samplers.ddim import DDIM
from ldmlab.samplers.ddpm import DDPM
from ldmlab.samplers.dpmpp_2m import DPMpp2M
from ldmlab.samplers.euler import Euler
from ldmlab.samplers.heun import Heun
from ldmlab.samplers.plms import PLMS
from ldmlab.samplers.sampler import Sampler
from ldmlab.samplers.start import Known, Start
from ldmlab.samplers.unipc import UniPC

MU, S = 0.7, 0.5  # of the data, in each coordinate
SHAPE = (4, 3, 8, 8)
EVERY = [DDIM(20), DDIM(20, 1.0), DDPM(20), DPMpp2M(20), DPMpp2M(20, 1.0), Euler(20), Heun(20), Heun(20, s_churn=2.0),
         PLMS(20), UniPC(20)]  # fmt: skip
NAMES = ["ddim", "ddim_eta", "ddpm", "dpmpp", "dpmpp_sde", "euler", "heun", "heun_churn", "plms", "unipc"]
every = pytest.mark.parametrize("sampler", EVERY, ids=NAMES)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(schedule: Schedule, asked: list[int] | None = None) -> Callable[[Tensor, Tensor, Any], Prediction]:
    """The best denoiser of data N(MU, S²); `asked` keeps the times."""

    def denoise(z: Tensor, t: Tensor, cond: Any) -> Prediction:
        if asked is not None:
            asked.append(int(t[0]))
        alpha, sigma = schedule.at(int(t[0]))
        z0 = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (z - alpha * MU)
        return Prediction(z0, (z - alpha * z0) / sigma)

    return denoise


def noises(seed: int = 9) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@every
def test_strength_one_without_signal_is_sampling_from_noise(sampler: Sampler) -> None:
    schedule = ZeroTerminalSNR(LinearSqrtBeta())
    assert schedule.ends_without_signal
    plain = sampler(exact(schedule), normal(0), schedule, None, noises())
    started = sampler(exact(schedule), normal(0), schedule, None, noises(), start=Start(normal(1)))
    assert torch.equal(plain, started)


@every
def test_a_start_is_the_noised_image_at_the_time_nearest_to_its_strength(sampler: Sampler) -> None:
    schedule, asked = LinearSqrtBeta(), []  # type: ignore[var-annotated]
    z0, eps = normal(1), normal(0)
    for strength in (1.0, 0.61, 0.3, 0.001):
        visited = sampler.times(1000)[:-1]
        first = min(visited, key=lambda t: abs(t - (strength * 1000 - 1)))
        left = visited[visited.index(first) :]
        seen: list[Tensor] = []
        sampler(exact(schedule, asked), eps, schedule, None, noises(), lambda done, of, z, seen=seen: seen.append(z),
                start=Start(z0, strength))  # fmt: skip
        assert len(seen) == len(left)
        if not getattr(sampler, "s_churn", 0):
            assert asked[0] == first and set(asked) == set(left)
        asked.clear()


def test_a_start_at_a_strength_follows_the_exact_path() -> None:
    """The probability flow of Gaussian data is affine: z_0' = MU + S (z_t - alpha MU) / sqrt(alpha² S² + sigma²).

    DDIM's own error: its last step arrives at the mean of z_0, which is sigma_0² / 2 S² = 0.3 % of z short.
    """
    schedule, z0, eps = LinearSqrtBeta(), normal(1), normal(0)
    for strength in (0.25, 0.75):
        alpha, sigma = schedule.at(round(strength * 1000) - 1)
        zt = alpha * z0 + sigma * eps
        wanted = MU + S * (zt - alpha * MU) / math.sqrt(alpha**2 * S**2 + sigma**2)
        found = DDIM(1000)(exact(schedule), eps, schedule, None, noises(), start=Start(z0, strength))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
    near = DDIM(1000)(exact(schedule), eps, schedule, None, noises(), start=Start(z0, 0.001))
    assert (near - z0).abs().max() < 0.2 < (found - z0).abs().max()


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match=rf"strength={strength} must be above 0.*at most 1"):
        Start(normal(0), strength)


@every
def test_known_pixels_come_out_as_they_are_and_the_others_as_without(sampler: Sampler) -> None:
    """Coordinates of these data are independent, so what is known of some must not move the others.

    UniC is left out after a changed step, so UniPC's others are compared with UniC left out everywhere.
    """
    schedule, known, eps = LinearSqrtBeta(), normal(1), normal(2)
    mask = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    mask[:, :, :, :5] = True
    project = Known(known, mask, eps)
    path: list[Tensor] = []
    found = sampler(
        exact(schedule), normal(0), schedule, None, noises(), lambda done, of, z: path.append(z), project=project
    )
    here = mask.expand(SHAPE)
    assert torch.equal(found[here], known[here])
    for z, t in zip(path, sampler.times(1000)[1:], strict=True):  # on the whole way: alpha z_0 + sigma eps
        alpha, sigma = schedule.at(t)
        assert torch.equal(z[here], (alpha * known + sigma * eps)[here])
    same = (lambda z, t, level: z.clone()) if isinstance(sampler, UniPC) else None
    free = sampler(exact(schedule), normal(0), schedule, None, noises(), project=same)
    torch.testing.assert_close(found[~here], free[~here], rtol=1e-12, atol=1e-12)


@every
def test_a_projection_onto_everything_is_the_identity(sampler: Sampler) -> None:
    """Nothing is changed, the same tensor comes back: bit for bit the sample without a projection."""
    schedule = LinearSqrtBeta()
    plain = sampler(exact(schedule), normal(0), schedule, None, noises())
    times: list[int] = []

    def look(z: Tensor, t: int, level: Any) -> Tensor:
        times.append(t)
        assert tuple(level) == tuple(schedule.at(t))
        return z

    assert torch.equal(plain, sampler(exact(schedule), normal(0), schedule, None, noises(), project=look))
    assert times == sampler.times(1000)[1:]


def test_a_start_and_known_pixels_together() -> None:
    schedule, image = LinearSqrtBeta(), normal(1)
    mask = torch.ones(4, 1, 8, 8, dtype=torch.bool)
    found = DDIM(20)(exact(schedule), normal(0), schedule, None, noises(), start=Start(image, 0.5),
                     project=Known(image, mask, normal(0)))  # fmt: skip
    assert torch.equal(found, image)
