"""Samplers: step by step against diffusers, closed forms for Gaussian data, and one noise stream per image."""

import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmlab.conditioning.compose import Compose
from ldmlab.diffusion.denoiser import Denoiser, denoise_with
from ldmlab.diffusion.objectives import Objective, Prediction
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta, Schedule
from ldmlab.errors import ConfigError
from ldmlab.networks.unet import UNet
from ldmlab.randomness import ImageNoise
from ldmlab.samplers.ddim import DDIM
from ldmlab.samplers.ddpm import DDPM
from ldmlab.samplers.dpmpp_2m import DPMpp2M
from ldmlab.samplers.euler import Euler
from ldmlab.samplers.grid import times
from ldmlab.samplers.heun import Heun
from ldmlab.samplers.plms import PLMS
from ldmlab.samplers.unipc import UniPC

SHAPE = (2, 3, 4, 4)
Denoise = Callable[[Tensor, Tensor, Any], Prediction]


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


def stream(seed: int, dtype: torch.dtype) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype)


def some_eps(z: Tensor, t: int) -> Tensor:
    """A network stand-in that depends on everything and stays bounded."""
    return torch.tanh(0.7 * z + 0.3 * z.flip(-1)) * (0.5 + t / 2000) + 0.1


def denoise_from(eps: Callable[[Tensor, int], Tensor], schedule: Schedule) -> Denoise:
    objective = Objective("eps", schedule)

    def denoise(z: Tensor, t: Tensor, cond: Any) -> Prediction:
        assert t.dtype == torch.int64 and t.shape == (len(z),)
        return objective.prediction(eps(z, int(t[0])), z, t)

    return denoise


def path_of_theirs(scheduler: Any, steps: int, dtype: torch.dtype, **step: Any) -> list[Tensor]:
    """Every z along diffusers' way down, starting from a fixed z_T."""
    scheduler.set_timesteps(steps)
    z = next(stream(0, dtype))
    path = []
    for t in scheduler.timesteps:
        z = scheduler.step(some_eps(z, int(t)), t, z, **step).prev_sample
        path.append(z)
    return path


def path_of_ours(sampler: DDIM | DDPM, schedule: Schedule, dtype: torch.dtype) -> list[Tensor]:
    path: list[Tensor] = []
    noise = stream(1, dtype)
    sampler(
        denoise_from(some_eps, schedule),
        next(stream(0, dtype)),
        schedule,
        None,
        lambda: next(noise),
        lambda done, of, z: path.append(z),
    )
    return path


def assert_paths_agree(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype) -> None:
    """Each z to 1e-6 of its own size; in float64 far below."""
    assert len(ours) == len(theirs)
    limit = 1e-9 if dtype == torch.float64 else 1e-6
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == dtype
        assert (mine - other).abs().max() <= limit * other.abs().max()


SCHEDULES = {
    "scaled_linear": (LinearSqrtBeta(), {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}),
    "cosine": (Cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
}
GRIDS: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing", "set_alpha_to_one": True},
    "official": {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_is_that_of_diffusers(diffusers: ModuleType, name: str, grid: str, eta: float, dtype: torch.dtype) -> None:
    schedule, options = SCHEDULES[name]
    theirs = diffusers.DDIMScheduler(**options, **GRIDS[grid], clip_sample=False)
    theirs.alphas_cumprod = (
        schedule.alpha_bar_T
    )  # theirs is the same table in float32; the rule is what is compared here
    theirs.final_alpha_cumprod = schedule.alpha_bar_T[0] if grid == "official" else torch.tensor(1.0).double()
    noise = stream(1, dtype)
    z = next(stream(0, dtype))
    theirs.set_timesteps(20)
    path = []
    for t in theirs.timesteps:
        arrives = grid == "trailing" and t == theirs.timesteps[-1]  # at the data: no noise, and ours draws none
        step = {"eta": eta, "variance_noise": next(noise)} if eta > 0 and not arrives else {"eta": 0.0}
        z = theirs.step(some_eps(z, int(t)), t, z, **step).prev_sample
        path.append(z)
    assert [int(t) for t in theirs.timesteps] == times(1000, 20, grid)[:-1]  # type: ignore[arg-type]
    assert_paths_agree(path_of_ours(DDIM(20, eta, grid), schedule, dtype), path, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm_is_that_of_diffusers(
    diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, variance: str, steps: int, dtype: torch.dtype
) -> None:
    schedule, options = SCHEDULES[name]
    theirs = diffusers.DDPMScheduler(
        **options, variance_type=f"fixed_{variance}", clip_sample=False, timestep_spacing="trailing"
    )
    theirs.alphas_cumprod, theirs.one = schedule.alpha_bar_T, torch.tensor(1.0).double()
    noise = stream(1, dtype)
    module = __import__("diffusers.schedulers.scheduling_ddpm", fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(noise))
    path = path_of_theirs(theirs, steps, dtype)
    ours = path_of_ours(DDPM(steps, variance), schedule, dtype)  # type: ignore[arg-type]
    if steps < 1000:  # with fewer steps theirs adds noise at the data too (t > 0); ours never does
        path, ours = path[:-1], ours[:-1]
    assert_paths_agree(ours, path, dtype)


# Data N(mu, s²) in each coordinate: z_t ~ N(alpha mu, alpha² s² + sigma²), and the best denoiser is
# z0 = mu + alpha s² / (alpha² s² + sigma²) (z_t - alpha mu).
MU, S = 0.7, 0.5


def exact_denoise(schedule: Schedule) -> Denoise:
    def denoise(z: Tensor, t: Tensor, cond: Any) -> Prediction:
        alpha, sigma = schedule.at(int(t[0]))
        z0 = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (z - alpha * MU)
        return Prediction(z0, (z - alpha * z0) / sigma)

    return denoise


def closed_form(schedule: Schedule, grid: list[int], rule: str, eta: float = 0.0) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler returns from z_T ~ N(0, 1), by moments alone.

    Written with alpha_bar, from the papers' equations and not from our code. Each step is affine: z' = a z + b + c noise.
    """
    mean, variance = 0.0, 1.0
    bar = np.concatenate([schedule.alpha_bar_T.numpy(), [1.0]])  # index -1 is the data
    for t, s in itertools.pairwise(grid):
        gain = bar[t] ** 0.5 * S**2 / (bar[t] * S**2 + 1 - bar[t])  # d z0 / d z
        offset = MU * (1 - gain * bar[t] ** 0.5)
        beta = 1 - bar[t] / bar[s]
        posterior = beta * (1 - bar[s]) / (1 - bar[t])
        if rule == "ddim":  # Song et al. eq. 12
            added = eta**2 * posterior
            towards = np.sqrt(1 - bar[s] - added) / np.sqrt(1 - bar[t])
            on_z0, on_z = bar[s] ** 0.5 - towards * bar[t] ** 0.5, towards
        else:  # Ho et al. eq. 7
            added = (posterior if rule == "small" else beta) if s >= 0 else 0.0
            on_z0, on_z = bar[s] ** 0.5 * beta / (1 - bar[t]), (1 - beta) ** 0.5 * (1 - bar[s]) / (1 - bar[t])
        a = on_z0 * gain + on_z
        mean, variance = a * mean + on_z0 * offset, a**2 * variance + added
    return float(mean), float(variance**0.5)


CASES = [("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("small", 0.0), ("large", 0.0)]


def sampler_of(rule: str, steps: int, eta: float) -> DDIM | DDPM:
    return DDIM(steps, eta) if rule == "ddim" else DDPM(steps, rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [5, 50])
@pytest.mark.parametrize(("rule", "eta"), CASES)
@pytest.mark.parametrize("schedule", [LinearSqrtBeta(), Cosine()])
def test_gaussian_data_come_out_as_computed(schedule: Schedule, rule: str, eta: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(16, 4, 16, 16, generator=generator)

    z0 = sampler_of(rule, steps, eta)(exact_denoise(schedule), noise(), schedule, None, noise)
    mean, spread = closed_form(schedule, times(1000, steps, "trailing"), rule, eta)
    n = z0.numel()  # 16 384: five standard errors
    assert float(z0.mean()) == pytest.approx(mean, abs=5 * spread / n**0.5)
    assert float(z0.std()) == pytest.approx(spread, abs=5 * spread / (2 * n) ** 0.5)


@pytest.mark.parametrize("schedule", [LinearSqrtBeta(), Cosine()])
def test_deterministic_ddim_is_one_linear_map(schedule: Schedule) -> None:
    zT = torch.randn(SHAPE, dtype=torch.float64)

    def no_noise() -> Tensor:
        raise AssertionError("eta 0 draws nothing")

    for grid in ("trailing", "official"):
        z0 = DDIM(20, grid=grid)(exact_denoise(schedule), zT, schedule, None, no_noise)  # type: ignore[arg-type]
        mean, spread = closed_form(schedule, times(1000, 20, grid), "ddim")  # type: ignore[arg-type]
        torch.testing.assert_close(z0, mean + spread * zT, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rule", "eta"), CASES)
def test_spread_approaches_the_data_as_steps_grow(rule: str, eta: float) -> None:
    schedule = Cosine()  # its last time keeps no signal, so that z_T ~ N(0, 1) is right
    errors = []
    for steps in (10, 100, 1000):
        mean, spread = closed_form(schedule, times(1000, steps, "trailing"), rule, eta)
        errors.append(abs(mean - MU) + abs(spread - S))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.005


@pytest.fixture(scope="module")
def tiny() -> tuple[Denoise, Schedule]:
    torch.manual_seed(0)
    net = UNet(4, 4, 32, [1, 2], 1, attention_factors=[2], heads=2)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    objective = Objective("v", Cosine())
    return denoise_with(Denoiser(net, Compose([])).eval(), objective), objective.schedule


EVERY = {
    "ddim": DDIM(5), "ddim eta 1": DDIM(5, eta=1.0), "ddpm": DDPM(5), "plms": PLMS(5), "dpmpp_2m": DPMpp2M(5),
    "dpmpp_2m_sde": DPMpp2M(5, eta=1.0), "heun": Heun(5), "euler": Euler(5), "unipc": UniPC(5),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_image_seven_is_image_seven_at_any_batch_size(tiny: tuple[Denoise, Schedule], name: str) -> None:
    sampler: Any = EVERY[name]
    denoise, schedule = tiny
    cond = Compose([])({})

    def sample(seeds: list[int]) -> tuple[list[Tensor], Tensor]:
        noise = ImageNoise(seeds, (4, 8, 8))
        drawn: list[Tensor] = []

        def kept() -> Tensor:
            drawn.append(noise())
            return drawn[-1]

        return drawn, sampler(denoise, kept(), schedule, cond, kept)

    drawn_many, many = sample(list(range(16)))
    drawn_one, one = sample([7])
    stochastic = name in ("ddim eta 1", "ddpm", "dpmpp_2m_sde")
    assert len(drawn_one) == len(drawn_many) == (5 if stochastic else 1)  # the last step adds none
    assert all(torch.equal(a[7], b[0]) for a, b in zip(drawn_many, drawn_one, strict=True))  # bit for bit
    # The network's kernels may sum in another order at another batch size: 1e-5 of the largest value, float32.
    assert (many[7] - one[0]).abs().max() <= 1e-5 * one.abs().max()
    assert not torch.allclose(many[7], many[8], atol=1e-2)


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match=r"sampler\.eta must be from 0 to 1; got 1.5"):
        DDIM(eta=1.5)
    with pytest.raises(ConfigError, match=r"sampler\.eta must be from 0 to 1; got -1"):
        DPMpp2M(eta=-1)
    for sampler in {type(sampler) for sampler in EVERY.values()}:
        with pytest.raises(ConfigError, match=r"sampler\.guidance must be at least 0"):
            sampler(guidance=-0.5)
        with pytest.raises(ConfigError, match=r"sampler\.guidance_interval must be \[low, high\].*got \[2, 1\]"):
            sampler(guidance_interval=[2, 1])
        with pytest.raises(ConfigError, match=r"sampler\.guidance_rescale must be from 0 .*got 1.5"):
            sampler(guidance_rescale=1.5)
        with pytest.raises(ConfigError, match=r"sampler\.steps must be from 1 to 1000"):
            sampler(steps=2000).times(1000)
