"""Objectives: round trips, EDM by its own equations, equal losses of equal settings, distances by hand."""

import pytest
import torch
from torch import Tensor

from ldmlab.diffusion.objectives import Objective, Prediction
from ldmlab.diffusion.paths import Flow, Karras
from ldmlab.diffusion.rescaled import ZeroTerminalSNR
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta, Schedule
from ldmlab.diffusion.targets import EDM, WORDS, Target
from ldmlab.diffusion.weightings import P2, EDMWeighting, MinSNR, SimpleOf
from ldmlab.errors import ConfigError

T_B = torch.tensor([0, 1, 250, 500, 998, 999])
TARGETS = [*WORDS, EDM(1.0), EDM(0.5)]
SCHEDULES = [LinearSqrtBeta(), Cosine(), Karras()]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z0, eps = torch.randn(2, len(T_B), 4, 3, 3, generator=generator, dtype=torch.float64)
    return z0, eps


def column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_answer_gives_back_latent_and_noise(target: str | Target, schedule: Schedule) -> None:
    z0, eps = data()
    objective = Objective(target, schedule)  # type: ignore[arg-type]
    zt = schedule.zt(z0, eps, T_B)
    answer = objective.target_of(z0, eps, T_B)
    predicted = objective.prediction(answer, zt, T_B)
    torch.testing.assert_close(predicted.z0, z0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(predicted.eps, eps, rtol=1e-9, atol=1e-9)
    assert not objective.loss(answer, z0, eps, T_B).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_any_answer_is_consistent_and_translates(target: str | Target, schedule: Schedule) -> None:
    # Whatever the network says, z_t = alpha z0 + sigma eps holds, and through the prediction it becomes the answer of every
    # other target and comes back.
    z0, eps = data()
    zt, answer = schedule.zt(z0, eps, T_B), torch.randn(z0.shape, generator=torch.Generator().manual_seed(1)).double()
    objective = Objective(target, schedule)  # type: ignore[arg-type]
    predicted = objective.prediction(answer, zt, T_B)
    torch.testing.assert_close(schedule.zt(predicted.z0, predicted.eps, T_B), zt, rtol=1e-9, atol=1e-9)
    for other in TARGETS:
        others = Objective(other, schedule)  # type: ignore[arg-type]
        between = others.prediction(others.target_of(*predicted, T_B), zt, T_B)
        torch.testing.assert_close(objective.target_of(*between, T_B), answer, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", [ZeroTerminalSNR(LinearSqrtBeta()), Flow()])
@pytest.mark.parametrize("target", ["v", "z0", "flow"])
def test_schedules_that_end_without_signal(target: str, schedule: Schedule) -> None:
    z0, eps = data()
    objective = Objective(target, schedule)  # type: ignore[arg-type]
    zt = schedule.zt(z0, eps, T_B)
    predicted = objective.prediction(objective.target_of(z0, eps, T_B), zt, T_B)
    torch.testing.assert_close(predicted.z0, z0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(predicted.eps, eps, rtol=1e-8, atol=1e-8)
    assert torch.equal(zt[-1], eps[-1])
    for refused, word in (("eps", "eps"), (EDM(), "edm")):
        with pytest.raises(ConfigError, match=rf"objective\.target={word} cannot work with a schedule that ends"):
            Objective(refused, schedule)  # type: ignore[arg-type]


def test_velocity_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = Cosine()
    theirs = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    theirs.alphas_cumprod = schedule.alpha_bar_T
    z0, eps = data()
    velocity = Objective("v", schedule).target_of(z0, eps, T_B)
    torch.testing.assert_close(velocity, theirs.get_velocity(z0, eps, T_B), rtol=1e-12, atol=1e-12)


def test_flow_is_the_straight_line() -> None:
    z0, eps = data()
    objective, tau = Objective("flow", Flow()), column((T_B + 1).double() / 1000)
    shown, time = objective.inputs(objective.schedule.zt(z0, eps, T_B), T_B)
    torch.testing.assert_close(shown, (1 - tau) * z0 + tau * eps, rtol=1e-9, atol=1e-9)
    assert torch.equal(time, T_B)
    torch.testing.assert_close(objective.target_of(z0, eps, T_B), eps - z0)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_edm_is_equation_seven(sigma_data: float) -> None:
    # 2206.00364, eq. 7, 8 and Table 1, written with x = z0 + s eps and D alone.
    z0, eps = data()
    schedule, objective = Karras(), Objective(EDM(sigma_data), Karras())
    s = column((torch.tensor(0.002) ** (1 / 7) + T_B / 999 * (80 ** (1 / 7) - 0.002 ** (1 / 7))).double() ** 7)
    torch.testing.assert_close(column(schedule.sigma(T_B) / schedule.alpha(T_B)).double(), s, rtol=1e-4, atol=0)
    s = column(schedule.sigma(T_B, torch.float64) / schedule.alpha(T_B, torch.float64))
    x, total = z0 + s * eps, s**2 + sigma_data**2
    shown, time = objective.inputs(schedule.zt(z0, eps, T_B), T_B)
    torch.testing.assert_close(shown, x / total.sqrt(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(time, s.flatten().log() / 4, rtol=1e-9, atol=1e-9)
    out = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1)).double()
    denoised = sigma_data**2 / total * x + s * sigma_data / total.sqrt() * out
    predicted = objective.prediction(out, schedule.zt(z0, eps, T_B), T_B)
    torch.testing.assert_close(predicted.z0, denoised, rtol=1e-9, atol=1e-9)
    weight = (total / (s * sigma_data) ** 2).flatten()
    expected = weight * (denoised - z0).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(objective.loss(out, z0, eps, T_B), expected, rtol=1e-7, atol=0)


def test_unit_edm_is_minus_v() -> None:
    z0, eps = data()
    minus_v = -Objective("v", Karras()).target_of(z0, eps, T_B)
    torch.testing.assert_close(Objective(EDM(1.0), Karras()).target_of(z0, eps, T_B), minus_v, rtol=1e-9, atol=1e-9)


def loss_of(objective: Objective, predicted: Prediction) -> Tensor:
    """The loss of a network that believes `predicted`, told in the objective's own target."""
    z0, eps = data()
    return objective.loss(objective.target_of(*predicted, T_B), z0, eps, T_B)


@pytest.mark.parametrize(
    "weighting", [SimpleOf("eps"), SimpleOf("v"), SimpleOf("flow"), MinSNR(), P2(), P2(0.5, 2.0), EDMWeighting(0.5)]
)
def test_a_weighting_is_the_same_loss_for_every_target(weighting: object) -> None:
    schedule, (z0, eps) = LinearSqrtBeta(), data()
    believed = Objective("z0", schedule).prediction(z0 + 0.1 * eps.flip(0), schedule.zt(z0, eps, T_B), T_B)
    losses = [loss_of(Objective(t, schedule, weighting=weighting), believed) for t in TARGETS]  # type: ignore[arg-type]
    for loss in losses:
        torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("simple", "target", "weighting"),
    [
        ("eps", "v", SimpleOf("eps")),
        ("v", "eps", SimpleOf("v")),
        ("v", "z0", EDMWeighting(1.0)),
        ("v", EDM(1.0), None),
        (EDM(0.5), "eps", EDMWeighting(0.5)),
        ("flow", "z0", SimpleOf("flow")),
        ("eps", "eps", P2(0.0)),
        ("z0", "v", MinSNR(1e12)),  # min(SNR, ∞) = SNR: see below
    ],
)
def test_equivalent_settings_have_equal_losses(simple: object, target: object, weighting: object) -> None:
    schedule, (z0, eps) = LinearSqrtBeta(), data()
    believed = Objective("z0", schedule).prediction(z0 + 0.1 * eps.flip(0), schedule.zt(z0, eps, T_B), T_B)
    expected = loss_of(Objective(simple, schedule), believed)  # type: ignore[arg-type]
    if isinstance(weighting, MinSNR):
        expected = loss_of(Objective("eps", schedule), believed)  # SNR on z0 is 1 on eps
    found = loss_of(Objective(target, schedule, weighting=weighting), believed)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_published_weights_per_target() -> None:
    schedule = LinearSqrtBeta()
    snr = schedule.alpha_bar_T[T_B] / (1 - schedule.alpha_bar_T[T_B])
    capped = snr.clamp(max=5.0)
    for target, expected in (("z0", capped), ("eps", capped / snr), ("v", capped / (snr + 1))):
        weight = Objective(target, schedule, weighting=MinSNR(5.0)).weight(T_B)  # type: ignore[arg-type]
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        Objective("eps", schedule, weighting=P2(0.5, 2.0)).weight(T_B), (2 + snr) ** -0.5, rtol=1e-9, atol=0
    )
    assert Objective("eps", schedule).weight(T_B) is None


def test_a_weight_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.weighting=MinSNR gives time 999 of 1000 the weight 0"):
        Objective("v", ZeroTerminalSNR(LinearSqrtBeta()), weighting=MinSNR())
    weight = Objective("v", ZeroTerminalSNR(LinearSqrtBeta()), weighting=EDMWeighting()).weight(T_B)
    torch.testing.assert_close(weight, torch.ones(len(T_B), dtype=torch.float64))


def test_distances_by_hand() -> None:
    z0, eps = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, -2.0]]], [[[0.0, 0.0]]]])
    out, t = torch.zeros(2, 1, 1, 2), torch.tensor([3, 4])
    assert Objective("eps", LinearSqrtBeta(), "l2").loss(out, z0, eps, t).tolist() == [2.5, 0.0]
    assert Objective("eps", LinearSqrtBeta(), "l1").loss(out, z0, eps, t).tolist() == [1.5, 0.0]
    assert Objective("eps", LinearSqrtBeta(), "huber").loss(out, z0, eps, t).tolist() == [(0.5 + 1.5) / 2, 0.0]
    assert Objective("eps", LinearSqrtBeta(), "huber", delta=2.0).loss(out, z0, eps, t).tolist() == [1.25, 0.0]
    low = Objective("eps", LinearSqrtBeta(), weighting=MinSNR()).loss(out.bfloat16(), z0, eps, t)
    assert low.dtype == torch.float32


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: Objective("eps", LinearSqrtBeta(), "huber", delta=0.0), r"objective\.delta must be greater than 0"),
        (lambda: EDM(0.0), r"objective\.target\.sigma_data must be greater than 0; got 0"),
        (lambda: MinSNR(0.0), r"objective\.weighting\.gamma must be greater than 0; got 0"),
        (lambda: P2(1.0, 0.0), r"objective\.weighting needs gamma >= 0 and k > 0"),
        (lambda: EDMWeighting(-1.0), r"objective\.weighting\.sigma_data must be greater than 0"),
    ],
)
def test_options_out_of_range_are_named(part: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part()  # type: ignore[operator]
