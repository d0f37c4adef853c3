"""Rank correlation over cells: scipy's own value, what partial means, what an interval over few cells says."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from ldmlab.metrics.rank_correlation import spearman

RNG = np.random.default_rng(0)


def test_is_scipys_also_with_ties() -> None:
    x, y = RNG.integers(0, 6, 20).astype(float), RNG.integers(0, 6, 20).astype(float)
    found = spearman(x, y, 100, 0)
    assert found is not None and found.value == pytest.approx(spearmanr(x, y).statistic)
    assert -1 <= found.low < found.value < found.high <= 1 and "over 20 cells" in found.method


def test_any_rising_map_changes_nothing() -> None:
    x, y = RNG.normal(size=15), RNG.normal(size=15)
    one, other = spearman(x, y, 50, 0), spearman(np.exp(x), y**3, 50, 0)
    assert one is not None and other is not None and one.replicates == other.replicates


def test_partial_takes_out_what_f_explains() -> None:
    """x and y that both follow f and nothing else: correlated, but not at equal f; of what is left it keeps the sign."""
    f = np.repeat([1.0, 2, 4, 8, 16], 40)
    own = RNG.normal(size=(3, 200))
    x, y = np.log2(f) + 0.3 * own[0], np.log2(f) + 0.3 * own[1]
    plain, partial = spearman(x, y, 100, 0), spearman(x, y, 100, 0, given=f)
    assert plain is not None and partial is not None
    assert plain.low > 0.8 and partial.low < 0.1 < 0.8 > partial.high
    against = spearman(np.log2(f) + 0.3 * own[2], np.log2(f) - 0.3 * own[2], 100, 0, given=f)
    assert against is not None and against.high < -0.8


def test_partial_is_the_correlation_of_residuals() -> None:
    x, y, g = RNG.normal(size=(3, 12))
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (x, y, g)]
    lines = np.stack([ranks[2], np.ones(12)], axis=1)
    left = [r - lines @ np.linalg.lstsq(lines, r, rcond=None)[0] for r in ranks[:2]]
    found = spearman(x, y, 50, 0, given=g)
    assert found is not None and found.value == pytest.approx(np.corrcoef(left)[0, 1])


def test_where_it_is_undefined() -> None:
    x = [1.0, 2, 3, 4, 5]
    assert spearman(x, [1.0] * 5, 50, 0) is None and spearman(x, [5.0, 3, 1, 2, 4], 50, 0, given=x) is None
    one, other = spearman(x, [5.0, 3, 1, 2, 4], 50, 0, given=[2.0] * 5), spearman(x, [5.0, 3, 1, 2, 4], 50, 0)
    assert one is not None and other is not None and one.value == other.value  # all of equal f
    with pytest.raises(ValueError, match="needs 4 cells"):
        spearman(x[:3], x[:3], 50, 0)


def test_interval_covers_in_simulation() -> None:
    """Of pairs of normal numbers with ρ = 0.6 (rank correlation 6/π asin(0.3) = 0.582), 20 cells: 95 % in about 19 of 20."""
    true, hits = 6 / np.pi * np.arcsin(0.3), 0
    for _ in range(60):
        x = RNG.normal(size=20)
        found = spearman(x, 0.6 * x + 0.8 * RNG.normal(size=20), 100, 0)
        assert found is not None
        hits += found.low <= true <= found.high
    assert hits >= 50
