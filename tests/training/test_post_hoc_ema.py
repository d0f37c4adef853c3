"""Power-function averages: the closed form of the update, widths, projections, and weights rebuilt from snapshots."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.fitting import check_power_ema
from ldmlab.training.post_hoc_ema import PowerEMA, Profile, combine, gamma_of, project


def test_widths_and_exponents_of_the_paper() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)  # 2312.02696, §3.1
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    for width in (0.01, 0.2, 0.28):
        g = gamma_of(width)
        assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(width, rel=1e-9)
    for width in (0.0, -1.0, 0.3):
        with pytest.raises(ConfigError, match=r"eval\.ema_width must be greater than 0 and at most 0\.28"):
            gamma_of(width, "eval.ema_width")


def test_the_update_is_its_closed_form() -> None:
    module = nn.Linear(2, 3)
    ema, gamma = PowerEMA(module, 0.1), gamma_of(0.1)
    weights = []
    for step in range(1, 30):
        with torch.no_grad():
            module.weight.copy_(torch.randn(3, 2, generator=torch.Generator().manual_seed(step)))
        ema.update(step)
        weights.append(module.weight.detach().double().clone())
    edges = torch.arange(30, dtype=torch.float64) ** (gamma + 1)
    expected = (edges.diff()[:, None, None] / edges[-1] * torch.stack(weights)).sum(0)
    torch.testing.assert_close(ema.state_dict()["weight"].double(), expected, rtol=0, atol=1e-5)


def test_products_of_profiles_are_their_integrals() -> None:
    tau = (np.arange(200_000) + 0.5) / 200_000
    for a, b in ((Profile(0.4, 16.97), Profile(1.0, 6.94)), (Profile(1.0, 3.0), Profile(1.0, 9.0))):
        curves = [np.where(tau < p.time, (p.gamma + 1) * tau**p.gamma / p.time ** (p.gamma + 1), 0) for p in (a, b)]
        assert a.dot(b) == pytest.approx(float((curves[0] * curves[1]).mean()), rel=1e-4)
        assert b.dot(a) == a.dot(b)


def test_a_stored_profile_is_found_again() -> None:
    stored = [Profile(time, gamma_of(w)) for time in (250, 500, 1000) for w in (0.05, 0.1)]
    for i, wanted in enumerate(stored):
        fitted = project(stored, wanted)
        expected = [float(i == k) for k in range(len(stored))]
        assert np.allclose(fitted.coefficients, expected, atol=1e-6) and fitted.error < 1e-5


def test_the_projection_is_least_squares() -> None:
    # Against plain least squares over finely sampled profiles, with the error it reports.
    stored = [Profile(time, gamma_of(w)) for time in (0.6, 0.8, 1.0) for w in (0.05, 0.1)]
    wanted, tau = Profile(1.0, gamma_of(0.07)), (np.arange(40_000) + 0.5) / 40_000
    curves = [np.where(tau < p.time, (p.gamma + 1) / p.time * (tau / p.time) ** p.gamma, 0) for p in [*stored, wanted]]
    basis, aim = np.stack(curves[:-1], 1), curves[-1]
    rest = np.linalg.lstsq(basis[:, :-1] - basis[:, -1:], aim - basis[:, -1], rcond=None)[0]
    x = np.append(rest, 1 - rest.sum())  # the last coefficient is what is left of 1
    fitted = project(stored, wanted)
    assert np.allclose(fitted.coefficients, x, atol=2e-3)
    left = np.linalg.norm(basis @ x - aim) / np.linalg.norm(aim)
    assert fitted.error == pytest.approx(float(left), abs=1e-3)
    assert fitted.error < 0.04
    assert sum(fitted.coefficients) == pytest.approx(1, abs=1e-9)  # weights that never moved come back as they are


@pytest.mark.parametrize("width", [0.05, 0.06, 0.08, 0.12])
def test_another_length_is_rebuilt_from_snapshots(width: float) -> None:
    # Weights that wander: the rebuilt average is that which a third PowerEMA has tracked, to a small part of its distance
    # from the last weights.
    module, steps = nn.Linear(4, 4, bias=False).double(), 400
    tracked = {w: PowerEMA(module, w) for w in (0.05, 0.1, width)}
    generator, stored = torch.Generator().manual_seed(0), []
    for step in range(1, steps + 1):
        with torch.no_grad():
            module.weight.add_(0.1 * torch.randn(4, 4, generator=generator, dtype=torch.float64))
        for average in tracked.values():
            average.update(step)
        if step % 40 == 0:
            for w in (0.05, 0.1):
                state = {"weight": tracked[w].shadow[0].clone(), "count": torch.tensor(step)}
                stored.append((Profile(step, gamma_of(w)), state))
    fitted = project([profile for profile, _ in stored], Profile(steps, gamma_of(width)))
    rebuilt = combine(fitted.coefficients, [lambda s=state: s for _, state in stored])  # type: ignore[misc]
    assert int(rebuilt["count"]) == steps and rebuilt["weight"].dtype == torch.float32
    error = (rebuilt["weight"] - tracked[width].shadow[0]).norm()
    assert error < 0.02 * (module.weight - tracked[width].shadow[0]).norm()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ldm.power_ema=[0.05,0.4]"], r"ldm\.power_ema must be greater than 0 and at most 0\.28, each of them; got \[0\.05, 0\.4\]"),
        (["ldm.power_ema=[0.1,0.1]"], r"ldm\.power_ema must be a list that names nothing twice; got \[0\.1, 0\.1\]"),
        (["eval.ema_width=0.1"], r"eval\.ema_width=0\.1 is made from power-function averages, and ldm\.power_ema=\[\] keeps none"),
        (["eval.ema_width=0.1", "ldm.power_ema=[0.1]", "eval.weights=raw"], r"eval\.ema_width=0\.1 is an average, but eval"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_said(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_power_ema(load(words).cfg)
    check_power_ema(load(["eval.ema_width=0.07", "ldm.power_ema=[0.05,0.1]"]).cfg)
