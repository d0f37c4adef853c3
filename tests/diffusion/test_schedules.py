"""Schedules against diffusers, the reference file and the plain definition."""

from types import ModuleType

import numpy as np
import pytest
import torch

from ldmlab.diffusion.paths import Flow, Karras
from ldmlab.diffusion.rescaled import Shifted, ZeroTerminalSNR
from ldmlab.diffusion.schedules import Cosine, Linear, LinearSqrtBeta, Schedule
from ldmlab.errors import ConfigError


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


def by_definition(name: str) -> np.ndarray:
    """alpha_bar in float64, written a second time with numpy."""
    if name == "linear":
        betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    else:

        def f(t: np.ndarray) -> np.ndarray:
            return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

        i = np.arange(1000)
        betas = np.minimum(1 - f((i + 1) / 1000) / f(i / 1000), 0.999)
    return np.cumprod(1 - betas)


@pytest.mark.parametrize(("name", "schedule"), [("linear", LinearSqrtBeta()), ("cosine", Cosine())])
def test_tables_are_the_definition(name: str, schedule: Schedule) -> None:
    assert np.allclose(schedule.alpha_bar_T.numpy(), by_definition(name), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "schedule", "tolerance"),
    # diffusers keeps betas and their product in float32: its last cosine value, 2.4e-9, has lost three digits to 1 - 0.999.
    [("scaled_linear", LinearSqrtBeta(), 2e-5), ("squaredcos_cap_v2", Cosine(), 1e-4)],
)
def test_tables_are_those_of_diffusers(diffusers: ModuleType, kind: str, schedule: Schedule, tolerance: float) -> None:
    theirs = diffusers.DDIMScheduler(beta_schedule=kind, beta_start=0.0015, beta_end=0.0195)
    # Their float32 betas, multiplied in float64, are ours to float32's resolution.
    betas = 1 - schedule.alpha_bar_T / torch.cat([torch.ones(1).double(), schedule.alpha_bar_T[:-1]])
    torch.testing.assert_close(betas.float(), theirs.betas, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(schedule.alpha_bar_T.float(), theirs.alphas_cumprod, rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize(
    ("ends", "first", "middle", "last"),  # docs/paper.md#noise-schedule; counted apart from this code
    [
        ((0.0015, 0.0195), 0.998500, 0.11584, 1.42e-4),
        ((0.0015, 0.0155), 0.998500, 0.15108, 6.69e-4),
        ((0.0015, 0.0205), 0.998500, 0.10858, 9.69e-5),
        ((0.00085, 0.012), 0.999150, 0.27767, 4.66e-3),
        ((0.0015, 0.015), 0.998500, 0.15631, 8.13e-4),
    ],
)
def test_terminal_signal_of_the_paper(ends: tuple[float, float], first: float, middle: float, last: float) -> None:
    alpha_bar = LinearSqrtBeta(1000, *ends).alpha_bar_T
    assert float(alpha_bar[0]) == pytest.approx(first, abs=5e-7)
    assert float(alpha_bar[499]) == pytest.approx(middle, abs=5e-6)
    assert float(alpha_bar[999]) == pytest.approx(last, rel=5e-3)


@pytest.mark.parametrize(("kind", "schedule"), [("scaled_linear", LinearSqrtBeta()), ("squaredcos_cap_v2", Cosine())])
def test_noising_is_that_of_diffusers(diffusers: ModuleType, kind: str, schedule: Schedule) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule=kind, beta_start=0.0015, beta_end=0.0195)
    generator = torch.Generator().manual_seed(0)
    z0, eps = torch.randn(2, 5, 4, 3, 3, generator=generator)
    t = torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(schedule.zt(z0, eps, t), theirs.add_noise(z0, eps, t), rtol=1e-5, atol=3e-6)
    theirs.alphas_cumprod = schedule.alpha_bar_T  # their rule with our float64 table
    exact = theirs.add_noise(z0.double(), eps.double(), t)
    torch.testing.assert_close(schedule.zt(z0.double(), eps.double(), t), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [LinearSqrtBeta(), Cosine(), LinearSqrtBeta(T=10), Linear(), Flow(), Karras(), ZeroTerminalSNR(Cosine()),
     Shifted(Flow(), 64, 32), Shifted(LinearSqrtBeta(), 8, factor=0.3)],
)  # fmt: skip
def test_variance_is_preserved_and_minus_one_is_the_data(schedule: Schedule) -> None:
    t = torch.arange(-1, schedule.T)
    alpha, sigma = schedule.alpha(t, torch.float64), schedule.sigma(t, torch.float64)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-14)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    assert schedule.alpha(t).dtype == torch.float32
    assert schedule.at(-1) == (1.0, 0.0)
    assert schedule.at(schedule.T - 1).alpha == float(alpha[-1])
    for outside in (-2, schedule.T):
        with pytest.raises(ValueError, match="outside"):
            schedule.at(outside)


def test_linear_is_that_of_diffusers(diffusers: ModuleType) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    torch.testing.assert_close(Linear().alpha_bar_T.float(), theirs.alphas_cumprod, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("schedule", [LinearSqrtBeta(), Cosine(), Linear()])
def test_zero_terminal_snr_is_that_of_diffusers(diffusers: ModuleType, schedule: Schedule) -> None:
    module = __import__("diffusers.schedulers.scheduling_ddim", fromlist=["rescale_zero_terminal_snr"])
    betas = 1 - schedule.alpha_bar_T / torch.cat([torch.ones(1).double(), schedule.alpha_bar_T[:-1]])
    theirs = torch.cumprod(1 - module.rescale_zero_terminal_snr(betas), dim=0)
    ours = ZeroTerminalSNR(schedule)
    torch.testing.assert_close(ours.alpha_bar_T, theirs, rtol=1e-9, atol=1e-15)
    assert ours.at(999) == (0.0, 1.0) and ours.ends_without_signal and not schedule.ends_without_signal
    assert ours.at(0).alpha == pytest.approx(schedule.at(0).alpha, rel=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.25])
def test_flow_has_the_sigmas_of_diffusers(diffusers: ModuleType, shift: float) -> None:
    # Their sigma is τ of the straight line: ours is sigma / (alpha + sigma). Shift: SD3, eq. 23.
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0).double()
    ours = Shifted(Flow(), 8, factor=shift)
    alpha, sigma = ours.levels()
    torch.testing.assert_close(sigma / (alpha + sigma), theirs, rtol=1e-6, atol=1e-7)
    assert ours.at(999) == (0.0, 1.0)


def test_karras_has_the_sigmas_of_diffusers(diffusers: ModuleType) -> None:
    theirs = diffusers.EDMEulerScheduler()
    theirs.set_timesteps(1000)
    alpha, sigma = Karras().levels()
    torch.testing.assert_close((sigma / alpha).flip(0).float(), theirs.sigmas[:-1], rtol=1e-5, atol=0)
    assert float(sigma[-1] / alpha[-1]) == pytest.approx(80, rel=1e-9)


@pytest.mark.parametrize("size", [8, 32, 128])
def test_larger_latents_get_more_noise(size: int) -> None:
    # simple diffusion: log SNR + 2 log(base / size)
    (alpha, sigma), (a, s) = Shifted(Cosine(), size, base_size=32).levels(), Cosine().levels()
    expected = 2 * (a / s).log() + 2 * np.log(32 / size)
    torch.testing.assert_close(2 * (alpha / sigma).log(), expected, rtol=1e-9, atol=1e-9)


def test_options_out_of_range_are_named() -> None:
    for given in ((32, None), (None, 3.0)):
        assert Shifted(Flow(), 8, *given).factor == (0.25 if given[0] else 3.0)
    for wrong in ((None, None), (32, 3.0)):
        with pytest.raises(ConfigError, match=r"objective\.schedule needs exactly one of base_size and factor"):
            Shifted(Flow(), 8, *wrong)
    with pytest.raises(ConfigError, match=r"base_size and factor must be greater than 0; got 0 and None"):
        Shifted(Flow(), 8, 0)
    with pytest.raises(ConfigError, match="T must be at least 2 to be rescaled; got 1"):
        ZeroTerminalSNR(LinearSqrtBeta(T=1))
    with pytest.raises(ConfigError, match="sigma_min=1, sigma_max=1, rho=7"):
        Karras(10, 1, 1)
    with pytest.raises(ConfigError, match=r"beta_start=0\.5, beta_end=0\.1"):
        Linear(10, 0.5, 0.1)
    with pytest.raises(ConfigError, match=r"objective\.schedule\.T must be at least 1; got 0"):
        LinearSqrtBeta(T=0)
    with pytest.raises(ConfigError, match=r"beta_start=0\.5, beta_end=0\.1"):
        LinearSqrtBeta(10, 0.5, 0.1)
    with pytest.raises(ConfigError, match="max_beta=1"):
        Cosine(max_beta=1.0)
