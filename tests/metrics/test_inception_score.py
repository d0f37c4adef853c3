"""Inception score: closed forms and torch-fidelity as oracle."""

import numpy as np
import pytest
import torch

from ldmlab.errors import ConfigError
from ldmlab.metrics.inception_score import inception_score, is_score


def test_closed_forms():
    sure = 1000.0 * np.eye(4)[np.random.default_rng(0).permutation(np.arange(4000) % 4)]
    assert inception_score(sure, splits=1) == pytest.approx(4)  # certain and even over K classes: K
    assert inception_score(np.ones((100, 7))) == pytest.approx(1)  # says nothing: 1
    assert inception_score(np.tile(sure[:1], (100, 1))) == pytest.approx(1)  # one class only: 1


@pytest.mark.parametrize(("n", "k"), [(10, 3), (997, 10), (2000, 50)])
def test_equal_to_torch_fidelity(n, k):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = (np.random.default_rng(n).standard_normal((n, k)) * 3).astype(np.float32)
    expected = isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(expected, rel=1e-10)
    assert is_score(logits, 20, 0).value == pytest.approx(expected, rel=1e-10)


def test_interval_covers_the_expectation_at_equal_n():
    rng = np.random.default_rng(1)
    scores = [is_score(rng.standard_normal((400, 10)) * 3, 200, seed) for seed in range(60)]
    mean = np.mean([score.value for score in scores])
    assert np.mean([score.low <= mean <= score.high for score in scores]) >= 0.85
    assert all(1 <= score.low <= score.value <= score.high <= 10 for score in scores)


def test_fewer_images_than_splits():
    with pytest.raises(ConfigError, match=r"eval\.samples=9: the inception score needs at least 10"):
        inception_score(np.zeros((9, 3)))
