"""FID at infinitely many samples: coverage of distances that are known, and what it refuses."""

import numpy as np
import pytest

from ldmlab.errors import ConfigError
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.fid_infinity import (
    FIDInfinity,
    equal_shares,
    fid_infinity,
    fid_infinity_score,
    less_first_order,
    variance_of_products,
)
from ldmlab.metrics.frechet import Gaussian, fid_score, frechet, frechet_value, gaussian
from ldmlab.metrics.metric import Inputs


def with_moments(mean, covariance, n=200, seed=99):
    """Features whose sample mean and unbiased covariance are exactly these: a reference set that is known."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (n - 1))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def coverage(draw, reference, truth, replicates, strata=None):
    """Shares of 95 % intervals of FID∞ and of FID that hold the true distance, and the mean error of both."""
    rows = []
    for seed in range(replicates):
        x = draw(np.random.default_rng(seed))
        infinite = fid_infinity_score(x, reference, 100, seed, strata)
        plain, _ = fid_score(x, reference, 100, seed)
        rows.append(
            [*(s.low <= truth <= s.high for s in (infinite, plain)), infinite.value - truth, plain.value - truth]
        )
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(
    ("d", "n", "kind", "far"),
    [
        (8, 60, "normal", 1.3),
        (8, 100, "normal", 1.0),
        (16, 60, "normal", 1.3),
        (16, 60, "exponential", 1.0),
        (24, 100, "normal", 1.0),
    ],
)
def test_interval_covers_the_true_distance_and_that_of_fid_does_not(d, n, kind, far):
    """Sets of n images from a known distribution: other covariance (far > 1) or the very one of the reference (0 away)."""
    scale = np.arange(1, d + 1) ** -0.3
    mean = np.full(d, 0.1 * (far > 1))
    reference = with_moments(np.zeros(d), np.diag(scale**2))
    truth = float(mean @ mean + ((far - 1) * scale) @ ((far - 1) * scale))  # commuting: closed form
    assert frechet(Gaussian(mean, np.diag((far * scale) ** 2), n), gaussian(reference)).value == pytest.approx(
        truth, abs=1e-9
    )
    draws = {
        "normal": lambda rng: rng.standard_normal((n, d)),
        "exponential": lambda rng: rng.exponential(size=(n, d)) - 1,
    }
    infinite, plain, error, bias = coverage(lambda rng: draws[kind](rng) * scale * far + mean, reference, truth, 100)
    assert 0.90 <= infinite <= 1.0
    assert plain < 0.85 and (far > 1 or plain < 0.05)
    assert abs(error) < 0.15 * bias


@pytest.mark.parametrize("far", [1.0, 1.1])
def test_labels_in_equal_shares(far):
    """Ten classes, far apart, each with its fixed share: treated as independent, the value would come out too low."""
    n, d, k = 203, 12, 10
    centre = np.random.default_rng(5).standard_normal((k, d)) * 2
    between = lambda c: np.eye(d) + (c - c.mean(axis=0)).T @ (c - c.mean(axis=0)) / k  # noqa: E731
    moments = [Gaussian(c.mean(axis=0), between(c), n) for c in (centre * far, centre)]
    reference, truth = with_moments(moments[1].mean, moments[1].covariance), frechet_value(*moments)
    label = np.arange(n) % k
    draw = lambda rng: centre[label] * far + rng.standard_normal((n, d))  # noqa: E731
    infinite, plain, error, bias = coverage(draw, reference, truth, 100, label)
    assert infinite >= 0.90 and plain < 0.5 and abs(error) < 0.1 * bias
    blind, *_ = coverage(draw, reference, truth, 40)
    assert blind < infinite


def test_second_order_term_is_the_bias():
    """FID less the computed a/N is nearer the truth than FID by the order of N, for sets with known moments."""
    rng, d = np.random.default_rng(0), 6
    b = Gaussian(np.zeros(d), np.eye(d), 1)
    left = [less_first_order(rng.standard_normal((400, d)), b, np.zeros(400, dtype=int)) for _ in range(200)]
    # closed form for normal features of unit covariance: tr S / N + ½ Σ_ij (1 + δ_ij) / 2 / N
    expected = (d + (d * d + d) / 4) / 400
    plain = [frechet_value(gaussian(rng.standard_normal((400, d))), b) for _ in range(200)]
    assert np.mean(plain) == pytest.approx(expected, rel=0.05)
    assert abs(np.mean(left)) < 0.05 * expected


@pytest.mark.parametrize("n_of_class", [4, 5, 40])
def test_variance_of_products_is_the_sum_over_classes(n_of_class):
    """Small classes go by pairs, large ones by moments; both are numpy's unbiased variance, class by class."""
    rng = np.random.default_rng(3)
    strata = rng.permutation(np.repeat(np.arange(3), [n_of_class, n_of_class + 1, 7]))
    y = rng.standard_normal((len(strata), 4)) + strata[:, None]
    products = y[:, :, None] * y[:, None, :]
    expected = sum(products[strata == c].var(axis=0, ddof=1) * (strata == c).sum() for c in range(3)) / len(strata)
    np.testing.assert_allclose(variance_of_products(y, strata), expected, rtol=1e-9)


def test_order_of_images_does_not_part_the_classes():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((120, 5)) + 3 * (np.arange(120) % 2)[:, None]
    b = gaussian(rng.standard_normal((300, 5)))
    label = np.arange(120) % 2
    by_class = np.argsort(label, kind="stable")
    assert fid_infinity(x, b, label) == pytest.approx(fid_infinity(x[by_class], b, label[by_class]), rel=1e-9)


def test_too_few_images():
    rng = np.random.default_rng(2)
    few, reference = rng.standard_normal((21, 10)), rng.standard_normal((50, 10))
    with pytest.raises(ConfigError, match=r"eval\.samples=21: FID∞ of 10 features .* Set eval\.samples=22"):
        fid_infinity_score(few, reference, 50, 0)
    assert fid_infinity_score(rng.standard_normal((22, 10)), reference, 50, 0).n == 22
    with pytest.raises(ConfigError, match=r"4 images of each class and has 3\. Set eval\.samples=160"):
        fid_infinity_score(rng.standard_normal((120, 3)), reference[:, :3], 50, 0, np.arange(120) % 40)
    inputs = Inputs(bootstrap=50, seed=0, samples=FeatureSet(few), reference=FeatureSet(reference))
    assert FIDInfinity().least(10) == (22, 2)
    with pytest.raises(ConfigError):
        FIDInfinity().compute(inputs)
    left_out = FIDInfinity(required=False).compute(inputs)
    assert left_out.scores == {} and left_out.warnings[0].startswith("Not computed: eval.samples=21: FID∞")


def test_equal_shares_are_seen_in_the_labels():
    assert equal_shares(None) is None
    np.testing.assert_array_equal(equal_shares(np.arange(53) % 10), np.arange(53) % 10)
    assert equal_shares(np.random.default_rng(0).integers(0, 10, 500)) is None
    assert equal_shares(np.full(9, 3)).tolist() == [3] * 9
