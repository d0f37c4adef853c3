"""Fréchet distance: closed forms, torch-fidelity as oracle, the interval against independent draws."""

import re

import numpy as np
import pytest
import torch

from ldmlab.errors import ConfigError
from ldmlab.metrics.frechet import Gaussian, fid_score, frechet, gaussian, influence


def features(rng, n, d, scale=1.0, shift=0.0):
    return (rng.standard_normal((n, d)) * scale + shift).astype(np.float32)


def test_closed_forms():
    a = Gaussian(np.zeros(2), np.diag([1.0, 4.0]), 100)
    b = Gaussian(np.array([1.0, 2.0]), np.diag([9.0, 4.0]), 100)
    assert frechet(a, b).value == pytest.approx(5 + (3 - 1) ** 2, rel=1e-12)  # |m|² + sum (s_a - s_b)²
    assert frechet(a, a).value == pytest.approx(0, abs=1e-12)
    # Rotated together, two Gaussians stay as far apart
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T, g.n) for g in (a, b)]
    assert frechet(*turned).value == pytest.approx(9, rel=1e-12)


def test_not_commuting_covariances_against_scipy_sqrtm():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6)) for _ in range(2))
    a, b = gaussian(x), gaussian(y)
    shift = a.mean - b.mean
    expected = shift @ shift + np.trace(a.covariance + b.covariance - 2 * sqrtm(a.covariance @ b.covariance).real)
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 500, 32), (500, 400, 128), (40, 60, 64)])
def test_equal_to_torch_fidelity(n, m, d):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(d)
    x, y = features(rng, n, d), features(rng, m, d, 1.2, 0.3)
    # float64: torch-fidelity takes the mean in the features' own precision
    stats = [fid_features_to_statistics(torch.from_numpy(f.astype(np.float64))) for f in (x, y)]
    expected = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    found = frechet(gaussian(x), gaussian(y))
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.disagreement < 1e-6
    assert ("without full rank" in found.method) == (m <= d)


def test_influence_is_the_derivative():
    rng = np.random.default_rng(2)
    x, reference = features(rng, 400, 5).astype(np.float64), gaussian(features(rng, 900, 5, 1.3, 0.2))
    psi = influence(x, reference)
    assert psi.mean() == pytest.approx(0, abs=1e-12)

    def weighted(w):
        mean = w @ x
        return frechet(Gaussian(mean, ((x - mean) * w[:, None]).T @ (x - mean) * 400 / 399, 400), reference).value

    step, flat = 1e-5, np.full(400, 1 / 400)
    for i in (0, 17, 399):
        w = flat * (1 - step)
        w[i] += step
        assert (weighted(w) - weighted(flat)) / step == pytest.approx(psi[i], rel=5e-3, abs=5e-3)


@pytest.mark.parametrize(("n", "d"), [(400, 8), (120, 64)])
def test_interval_covers_the_expectation_at_equal_n(n, d):
    """95 % intervals of 60 independent sets: how many hold the mean FID of sets of n images, bias and all."""
    rng = np.random.default_rng(n)
    reference = features(rng, 3000, d, 1.1, 0.1)
    scores = [fid_score(features(rng, n, d), reference, 100, seed)[0] for seed in range(60)]
    mean = np.mean([score.value for score in scores])
    covered = np.mean([score.low <= mean <= score.high for score in scores])
    assert covered >= 0.85
    assert np.mean([score.high - score.low for score in scores]) < 8 * np.std([score.value for score in scores])


def test_ranks_and_counts():
    rng = np.random.default_rng(3)
    wide, reference = features(rng, 20, 32), features(rng, 200, 32)
    score, warnings = fid_score(wide, reference, 50, 0)
    assert score.low <= score.value <= score.high and score.low >= 0
    assert len(warnings) == 1 and "20 samples for 32 features" in warnings[0] and "eval.samples" in warnings[0]
    assert "normal interval from 50" in score.method
    _, warnings = fid_score(reference, wide, 50, 0)
    assert "eval.reference.images" in warnings[0]
    with pytest.raises(ConfigError, match=r"eval\.samples.*at least 2 images; got 1"):
        fid_score(wide[:1], reference, 50, 0)
    with pytest.raises(ConfigError, match=r"eval\.reference\.images"):
        fid_score(wide, reference[:1], 50, 0)
    with pytest.raises(ValueError, match="different networks"):
        frechet(gaussian(wide), gaussian(wide[:, :3]))


@pytest.mark.parametrize("length", [1.0, 3.0, 12.0])
def test_a_fid_that_few_images_carry_says_so_and_names_them(length):
    """The further out eight of 2 000 images lie, the more of the FID is theirs: none of it, little, most."""
    rng = np.random.default_rng(5)
    reference, x = features(rng, 4000, 16), features(rng, 2000, 16, 1.0, 0.1)
    strange = [17, 200, 341, 512, 999, 1200, 1500, 1999]
    x[strange] *= length
    score, warnings = fid_score(x, reference, 50, 0)
    if length < 12:
        assert warnings == []
        return
    (warning,) = warnings
    kept, _ = fid_score(np.delete(x, strange, axis=0), reference, 50, 0)
    without = float(re.search(r"without them it is ([\d.e+-]+)\.", warning)[1])
    assert without == pytest.approx(kept.value, rel=0.1) and without < 0.5 * score.value
    assert set(map(int, re.search(r"from 0: ([\d, ]+) …", warning)[1].split(","))) < set(strange)
    assert fid_score(x[strange[0] : strange[0] + 150], reference, 50, 0)[1] == []  # an image of so few is not few


@pytest.mark.parametrize("n", [500, 4000])
def test_no_fid_of_gaussian_features_is_carried_by_few(n):
    rng = np.random.default_rng(n)
    for shift in (0.0, 0.3):
        assert fid_score(features(rng, n, 32, 1.0, shift), features(rng, 8000, 32), 50, 0)[1] == []
