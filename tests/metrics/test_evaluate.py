"""One pass, all metrics: names, warnings, errors."""

import json

import numpy as np
import pytest

from ldmlab.errors import ConfigError
from ldmlab.metrics import evaluate as evaluation
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.label_agreement import label_agreement
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.standard import standard

METRICS = ("fid", "is", "kid", "precision", "recall")


def feature_set(seed, n=120, shift=0.0):
    rng = np.random.default_rng(seed)
    return FeatureSet(
        (rng.standard_normal((n, 12)) + shift).astype(np.float32), rng.standard_normal((n, 4)).astype(np.float32)
    )


def evaluate(samples, reference, names, bootstrap, seed):
    inputs = Inputs(bootstrap=bootstrap, seed=seed, samples=samples, reference=reference)
    return evaluation.evaluate(standard(names), inputs)


def test_every_metric_with_its_interval():
    found = evaluate(feature_set(0), feature_set(1), list(METRICS), 40, 0)
    assert list(found.values) == list(METRICS) and found.warnings == []
    for score in found.values.values():
        assert score.low <= score.value <= score.high and score.n == 120 and len(score.replicates) == 40
    far = evaluate(feature_set(0, shift=3), feature_set(1), list(METRICS), 40, 0)
    assert far["fid"].low > found["fid"].high and far["kid"].low > found["kid"].high
    assert far["precision"].high < found["precision"].low
    written = json.loads(json.dumps(found.to_dict()))
    assert written["scores"]["fid"]["value"] == found["fid"].value and written["warnings"] == []


def test_deterministic_and_a_subset_is_the_same_numbers():
    all_of = evaluate(feature_set(0), feature_set(1), list(METRICS), 30, 5)
    some = evaluate(feature_set(0), feature_set(1), ["recall", "fid"], 30, 5)
    assert list(some.values) == ["recall", "fid"]
    assert some["fid"] == all_of["fid"] and some["recall"] == all_of["recall"]


def test_warnings_travel():
    found = evaluate(feature_set(0, n=11), feature_set(1), ["fid"], 30, 0)
    assert "eval.samples above 12" in found.warnings[0]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["fib"], r"eval\.metrics: no metric 'fib'\. Did you mean 'fid'\? Allowed: fid, is, kid, precision, recall"),
        ([], r"eval\.metrics is empty"),
        (["fid", "fid"], r"eval\.metrics: 'fid' is named twice"),
    ],
)
def test_metric_names(metrics, message):
    with pytest.raises(ConfigError, match=message):
        standard(metrics)
    with pytest.raises(ConfigError, match=message):
        evaluate(feature_set(0), feature_set(1), metrics, 30, 0)


def test_inception_score_needs_logits():
    bare = FeatureSet(feature_set(0).features)
    with pytest.raises(ConfigError, match=r"eval\.metrics: 'is' needs class logits"):
        evaluate(bare, feature_set(1), ["is"], 30, 0)
    assert evaluate(bare, feature_set(1), ["fid"], 30, 0)["fid"].value > 0


def test_features_of_different_networks():
    with pytest.raises(ValueError, match="different networks: 12 and 3"):
        evaluate(feature_set(0), FeatureSet(np.zeros((9, 3), np.float32)), ["fid"], 30, 0)


def test_label_agreement():
    logits = np.eye(4)[[0, 1, 2, 3, 0]]
    score = label_agreement(logits, np.array([0, 1, 2, 0, 1]), same_classes=True)
    assert score.value == pytest.approx(0.6) and score.low < 0.6 < score.high
    with pytest.raises(ConfigError, match="classes are the data's own"):
        label_agreement(logits, np.array([0, 1, 2, 0, 1]), same_classes=False)
    with pytest.raises(ValueError, match="labels span 0…7"):
        label_agreement(logits, np.array([0, 1, 2, 0, 7]), same_classes=True)
