"""Intervals: reproducible resamples, coverage, and differences of two runs."""

import json

import numpy as np
import pytest

from ldmlab.errors import ConfigError
from ldmlab.metrics.intervals import Score, centred, mean_score, paired_interval, resamples, share_score, wilson


def test_resamples_are_a_function_of_n_seed_and_stream():
    counts = resamples(50, 30, seed=3)
    assert counts.shape == (30, 50) and (counts.sum(axis=1) == 50).all()
    np.testing.assert_array_equal(counts, resamples(50, 30, seed=3))
    np.testing.assert_array_equal(counts[:20], resamples(50, 20, seed=3))  # more replicates never change earlier ones
    assert (counts != resamples(50, 30, seed=4)).any() and (counts != resamples(50, 30, seed=3, stream="x")).any()


def test_mean_interval_covers_and_has_the_textbook_width():
    rng = np.random.default_rng(0)
    scores = [mean_score(rng.exponential(size=200), 200, seed, "") for seed in range(100)]
    assert np.mean([score.low <= 1 <= score.high for score in scores]) >= 0.87
    width = np.mean([score.high - score.low for score in scores])
    assert width == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.1)


def test_centred_removes_the_bias_of_replicates_and_stops_at_the_limits():
    replicates = np.linspace(5, 6, 1001)
    low, high = centred(1.0, replicates)
    assert (low, high) == pytest.approx((1 - 0.475, 1 + 0.475))
    assert centred(0.1, replicates, lowest=0.0).low == 0
    assert centred(1.0, replicates, highest=1.0).high == 1


def test_wilson_against_statsmodels_values():
    # Newcombe 1998, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_pairs_cancel_what_runs_share():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=400)
    a = mean_score(shared + 0.01 * rng.normal(size=400), 200, 0, "")
    b = mean_score(shared + 0.01 * rng.normal(size=400) + 0.02, 200, 0, "")
    assert a.low < b.value < a.high  # alone, the two overlap
    difference = paired_interval(a, b)
    assert difference.distinguishable and difference.low < 0.02 < difference.high
    assert not paired_interval(a, a).distinguishable
    unpaired = mean_score(shared[:300], 200, 0, "")
    assert paired_interval(unpaired, b).high - paired_interval(unpaired, b).low > 0.15
    with pytest.raises(ValueError, match=r"eval\.bootstrap"):
        paired_interval(a, mean_score(shared, 100, 0, ""))


def test_share_and_json_round_trip():
    score = share_score(np.array([True, False, True, True]), 40, 1, "hits")
    assert score.value == 0.75 and 0 < score.low < 0.75 < score.high < 1
    assert Score.from_dict(json.loads(json.dumps(score.to_dict()))) == score


def test_too_few_resamples():
    with pytest.raises(ConfigError, match=r"eval\.bootstrap must be at least 20 resamples; got 5"):
        mean_score(np.ones(3), 5, 0, "")
