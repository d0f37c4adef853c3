"""Diagnostics on latents whose answers are known: white noise, one wave, a constant, clusters, one number for all scales."""

import math

import numpy as np
import pytest
import torch

from ldmlab.diffusion.linear_gaussian import Stationary
from ldmlab.metrics.latent_diagnostics import (
    Latents,
    Ratio,
    chance,
    diagnose,
    high_frequency,
    neighbours,
    overall_std,
    ratio_score,
    smoothness,
    standardised,
    velocity,
)

GENERATOR = torch.Generator().manual_seed(0)


def white(n: int, c: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(n, c, size, size, generator=GENERATOR, dtype=torch.float64)


def smooth(n: int) -> torch.Tensor:
    z = white(n)
    return z + 0.9 * z.roll(1, 2) + 0.9 * z.roll(1, 3) + 0.8 * z.roll((1, 1), (2, 3))


def spectrum(z: torch.Tensor) -> Stationary:
    waves = Stationary((z.shape[1], z.shape[2], z.shape[3]))
    waves.update(z)
    return waves.finish()


def value(found: Ratio | None) -> float:
    assert found is not None
    return float(found.above_N.mean() / found.below_N.mean())


def test_velocity_of_white_noise_is_a_quarter_pi() -> None:
    assert value(velocity(spectrum(white(4000)), white(500))) == pytest.approx(math.pi / 4, abs=0.002)


def test_velocity_of_a_linear_gaussian_is_what_least_squares_leaves() -> None:
    """On the straight path, at each level by itself, with a regression on 6 000 latents tried on 6 000 others."""
    fit, held = smooth(6000), smooth(6000)
    std = overall_std(fit)
    fit, held = standardised(fit, std), standardised(held, std)
    left = []
    for t in (torch.arange(8, dtype=torch.float64) + 0.5) / 8:
        parts = []
        for z in (fit, held):
            eps = torch.randn(z.shape, generator=GENERATOR, dtype=torch.float64)
            parts.append((((1 - t) * z + t * eps).flatten(1), (eps - z).flatten(1)))
        weights = torch.linalg.lstsq(*parts[0]).solution
        left.append(float((parts[1][0] @ weights - parts[1][1]).square().mean() / parts[1][1].square().mean()))
    assert value(velocity(spectrum(fit), held)) == pytest.approx(np.mean(left), rel=0.03)
    assert np.mean(left) < 0.7  # of what white noise leaves, 0.785


def test_few_directions_leave_little() -> None:
    one = torch.ones(1, 2, 8, 8, dtype=torch.float64) * white(2000, 1, 1)
    assert value(velocity(spectrum(one), one)) < 0.1


def test_shares_of_frequencies() -> None:
    flat, x = torch.ones(50, 1, 8, 8, dtype=torch.float64), torch.arange(8)
    size_N = white(50, 1, 1)
    assert value(high_frequency(white(2000))) == pytest.approx(
        1 - 25 / 64, abs=0.01
    )  # |k| <= 2 of -4 … 3, along both axes
    assert value(high_frequency(size_N * flat * torch.cos(2 * math.pi * 1 * x / 8))) == pytest.approx(0, abs=1e-12)
    assert value(high_frequency(size_N * flat * torch.cos(2 * math.pi * 3 * x / 8))) == pytest.approx(1)
    assert high_frequency(white(5, 2, 1)) is None


def test_correlation_of_neighbours() -> None:
    assert value(smoothness(white(3000))) == pytest.approx(0, abs=0.01)
    assert value(smoothness(white(50, 2, 1) * torch.ones(1, 1, 8, 8))) == pytest.approx(1)
    z = white(4000, 1, 16)
    mixed = z + z.roll(1, 2)  # correlation ½ along one axis, 0 along the other
    assert value(smoothness(mixed)) == pytest.approx(0.25, abs=0.01)
    assert smoothness(white(5, 2, 1)) is None


def test_neighbours_share_their_label_in_clusters_and_by_chance() -> None:
    label_N = np.arange(300) % 3
    apart = white(300) + 100 * torch.as_tensor(label_N)[:, None, None, None]
    assert neighbours(apart, label_N).min() == 1
    assert neighbours(white(1500), np.arange(1500) % 3).mean() == pytest.approx(chance(np.arange(1500) % 3), abs=0.02)
    assert chance(label_N) == pytest.approx(99 / 299)
    assert chance(np.array([0, 0, 0, 1])) == pytest.approx(0.5)  # of 12 ordered pairs six are of class 0
    own = neighbours(torch.tensor([0.0, 1.0, 2.5, 10.0]).view(4, 1, 1, 1), np.array([0, 0, 1, 1]), k=1)
    assert own.tolist() == [1, 1, 0, 1]  # an image is not its own neighbour


def test_the_scale_of_a_latent_does_not_matter() -> None:
    fit, held = smooth(600), smooth(100)
    found = []
    for scale in (1.0, 37.0):
        std = overall_std(scale * fit)
        latents = Latents(spectrum(standardised(scale * fit, std)), standardised(scale * held, std), None)
        found.append({name: score.value for name, score in diagnose(latents, np.arange(100) % 2, 50, 0).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-9) and len(found[0]) == 4


def test_interval_of_a_ratio_is_its_spread() -> None:
    rng, ends = np.random.default_rng(0), []
    spread = np.std([np.mean(a) / np.mean(a + b) for a, b in (rng.uniform(1, 2, (2, 100)) for _ in range(2000))])
    for _ in range(20):
        a, b = rng.uniform(1, 2, (2, 100))
        score = ratio_score(Ratio(a, a + b), 200, 0, "test")
        ends.append((score.high - score.low) / 2)
    assert np.mean(ends) == pytest.approx(1.96 * spread, rel=0.1)
