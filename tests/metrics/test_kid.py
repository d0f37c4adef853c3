"""Kernel inception distance: torch-fidelity as oracle, an explicit double sum, the interval against independent draws."""

import numpy as np
import pytest
import torch

from ldmlab.errors import ConfigError
from ldmlab.metrics import kid as kid_module
from ldmlab.metrics.kid import kid, kid_replicates, kid_score


@pytest.mark.parametrize(("n", "m", "d"), [(1500, 1200, 32), (300, 800, 64)])
def test_equal_to_torch_fidelity(n, m, d):
    from torch_fidelity.metric_kid import kid_features_to_metric

    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d)) * 1.1 + 0.2
    expected = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=7, kid_subset_size=min(1000, n, m), verbose=False
    )["kernel_inception_distance_mean"]
    assert kid(x, y, subsets=7) == pytest.approx(expected, rel=1e-9)
    # float32, as features come: equal to rounding, far inside any interval
    assert kid(x.astype(np.float32), y.astype(np.float32), subsets=7) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_replicates_are_the_weighted_estimator(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 4)), rng.standard_normal((6, 4)) + 0.5
    counts = np.stack([np.ones(9, dtype=np.int64), rng.multinomial(9, np.full(9, 1 / 9))])
    k = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731
    expected = []
    for w in counts:
        pairs = [(w[i] * w[j], k(x[i], x[j])) for i in range(9) for j in range(9) if i != j]
        within = sum(a * b for a, b in pairs) / sum(a for a, _ in pairs)
        expected.append(within - 2 * np.mean([w[i] * k(x[i], b) for i in range(9) for b in y]))
    # numpy's sum over all pairs with equal indices left out: N² - sum w²
    monkeypatch.setattr(kid_module, "BLOCK", 20)  # blocks of two rows
    np.testing.assert_allclose(kid_replicates(x, y, counts), expected, rtol=1e-6)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((2000, 8)).astype(np.float32)
    scores = [
        kid_score((rng.standard_normal((150, 8)) * 1.2).astype(np.float32), reference, 100, seed) for seed in range(40)
    ]
    mean = np.mean([score.value for score in scores])
    assert np.mean([score.low <= mean <= score.high for score in scores]) >= 0.85


def test_equal_distributions_give_about_zero():
    rng = np.random.default_rng(2)
    score = kid_score(rng.standard_normal((800, 16)), rng.standard_normal((800, 16)), 50, 0)
    assert score.low < 0 < score.high
    assert "subsets of 800" in score.method


def test_too_few_images():
    x = np.zeros((5, 3))
    with pytest.raises(ConfigError, match=r"eval\.samples=1: KID needs at least 2"):
        kid(x[:1], x)
    with pytest.raises(ConfigError, match=r"eval\.reference\.images=1"):
        kid(x, x[:1])


def test_interval_of_a_handful_of_images_is_refused_not_nan():
    """A resample of few images may hold copies of one alone, and then has no pair."""
    x = np.random.default_rng(3).standard_normal((10, 4))
    with pytest.raises(
        ConfigError, match=r"eval\.samples=3: an interval of KID needs at least 10 images.*Set eval\.samples=10"
    ):
        kid_score(x[:3], x, 200, 0)
    score = kid_score(x, x + 1, 200, 0)
    assert np.isfinite([score.low, score.high]).all() and score.low < score.value < score.high
