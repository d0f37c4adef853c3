"""The seam of the metrics: declarations, what a composition can be asked, what is refused before anything starts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml

from ldmlab import build
from ldmlab.conditioning.source import Labels, Unconditional
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.metrics.evaluate import evaluate
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.intervals import mean_score
from ldmlab.metrics.kid import KID
from ldmlab.metrics.metric import Computed, Inputs, Metric, available, check, check_counts
from ldmlab.metrics.precision_recall import Precision
from ldmlab.metrics.standard import OF_A_RUN, STANDARD, standard

ALL = available(logits=True, classes_of_data=True, conditions=["label"])


@dataclass(frozen=True)
class PairError(Metric):
    """Mean absolute difference of each generated image from its true one, in 8-bit levels: a metric from outside."""

    name: ClassVar[str] = "pair_error"
    label: ClassVar[str] = "pair error"
    needs: ClassVar[tuple[str, ...]] = ("pairs", "stage:segmenter")
    better: ClassVar[str] = "lower"
    unit: ClassVar[str] = "levels"

    power: int = 1

    def compute(self, inputs):
        a, b = inputs.pairs([0, 1, 2])
        error_B = (a.double() - b.double()).abs().pow(self.power).mean(dim=(1, 2, 3))
        name = f"{self.name}_{inputs.stages['segmenter'].name}"
        return Computed({name: mean_score(error_B.numpy(), inputs.bootstrap, inputs.seed, "by hand")}, ["look twice"])


def features(n=120, seed=0):
    rng = np.random.default_rng(seed)
    return FeatureSet(rng.standard_normal((n, 12)).astype(np.float32), np.eye(4, dtype=np.float32)[np.arange(n) % 4])


def test_yaml_files_are_the_standard_metrics():
    own = STANDARD | OF_A_RUN
    for name, metric in own.items():
        file = Path(__file__).parents[2] / "conf" / "metric" / f"{name}.yaml"
        given = yaml.safe_load(file.read_text())
        target = given.pop("_target_")
        assert target == f"{type(metric).__module__}.{type(metric).__name__}"
        assert type(metric)(**given) == metric
    assert {file.stem for file in file.parent.iterdir()} == set(own)


def test_declarations_travel_with_the_scores():
    inputs = Inputs(
        bootstrap=20, seed=0, samples=features(), reference=features(seed=1), conditions=Labels(np.arange(120) % 4, ("a", "b", "c", "d")),
        classes_of_data=True,
    )  # fmt: skip
    found = evaluate(list(STANDARD.values()), inputs)
    assert list(found.values) == list(STANDARD) and found["label_agreement"].value == 1
    written = json.loads(json.dumps(found.to_dict()))
    assert written["metrics"]["fid"]["label"] == "FID" and written["metrics"]["fid"]["better"] == "lower"
    assert written["metrics"]["kid"]["settings"] == {
        "subsets": 100, "subset_size": 1000, "subset_seed": 2020, "estimator": "cubic polynomial kernel",
    }  # fmt: skip
    assert written["metrics"]["is"]["settings"] == {"splits": 10, "shuffle_seed": 2020}
    for name, said in written["metrics"].items():
        assert written["scores"][name]["covers"] == said["covers"] and said["interval"]
    assert "infinitely many" in written["scores"]["fid_infinity"]["covers"]


def test_a_metric_from_outside():
    image = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    pairs = lambda rows: (image[rows], image[rows] + 3)  # noqa: E731
    inputs = Inputs(bootstrap=20, seed=0, pairs=pairs, stages={"segmenter": Path("store/segmenter-1")})
    with pytest.raises(ConfigError, match=r"'pair_error' needs a true image for each sample.*leave it out"):
        check([PairError()], ALL)
    with pytest.raises(ConfigError, match="the result of the stage 'segmenter'"):
        check([PairError()], available(logits=False, classes_of_data=False, pairs=True))
    offered = available(logits=False, classes_of_data=False, pairs=True, stages=["segmenter"])
    found = evaluate(check([PairError(power=2)], offered), inputs)
    assert found["pair_error_segmenter-1"].value == 9 and found.warnings == ["look twice"]
    assert found.metrics["pair_error"]["settings"] == {"power": 2} and found.metrics["pair_error"]["unit"] == "levels"


def test_what_a_composition_cannot_give():
    bare = available(logits=False, classes_of_data=False)
    with pytest.raises(ConfigError, match=r"eval\.metrics: 'is' needs class logits.*leave it out, or choose an eval"):
        check(standard(["fid", "is"]), bare)
    assert [m.name for m in check(standard(["fid", "label_agreement"]), bare)] == ["fid"]  # required: false
    assert [m.name for m in check(standard(["fid", "label_agreement"]), ALL)] == ["fid", "label_agreement"]
    strict = [type(STANDARD["label_agreement"])()]
    with pytest.raises(ConfigError, match="an extractor whose classes are the data's"):
        check(strict, available(logits=True, classes_of_data=False, conditions=["label"]))
    with pytest.raises(ConfigError, match=r"samples conditioned on label.*choose a cond other than none"):
        check(strict, available(logits=True, classes_of_data=True))
    with pytest.raises(ConfigError, match=r"eval\.metrics: 'fid' is named twice"):
        check(standard(["fid"]) * 2, ALL)
    with pytest.raises(ConfigError, match=r"eval\.metrics is empty"):
        check([], ALL)


@pytest.mark.parametrize(
    ("names", "counts", "message"),
    [
        (["is"], {"samples": 5}, r"eval\.samples=5: IS needs at least 10 images\. Set eval\.samples=10 or more, or leave 'is'"),
        (["fid"], {"samples": 1}, r"eval\.samples=1: FID needs at least 2"),
        (["kid"], {"samples": 9}, r"eval\.samples=9: KID needs at least 10"),
        (["precision"], {"samples": 3}, r"eval\.samples=3: precision needs at least 4"),
        (["recall"], {"reference": 3}, r"eval\.reference\.images=3: recall needs at least 4"),
        (["fid"], {"reference": 1}, r"eval\.reference\.images=1: FID needs at least 2"),
        (["fid"], {"bootstrap": 1}, r"eval\.bootstrap must be at least 20 resamples; got 1\. Set eval\.bootstrap=200"),
    ],
)  # fmt: skip
def test_too_few_images_are_refused_before_anything_starts(names, counts, message):
    enough = {"samples": 10, "reference": 4, "bootstrap": 20}
    check_counts(standard(names), **enough)
    with pytest.raises(ConfigError, match=message):
        check_counts(standard(names), **{**enough, **counts})


def test_first_stage_names_its_own_option():
    options = ("eval.reconstructions", "data.val_images")
    with pytest.raises(ConfigError, match=r"eval\.reconstructions=1: FID"):
        check_counts(standard(["fid"]), 1, 1, 20, options=options)
    with pytest.raises(ConfigError, match=r"data\.val_images=1: FID"):
        check_counts(standard(["fid"]), 2, 1, 20, options=options)


@pytest.mark.parametrize("names", [["fid", "kid", "is", "precision", "recall"]])
def test_the_least_counts_are_enough_for_finite_numbers(names):
    for metric in standard(names):
        least = metric.least(12)
        inputs = Inputs(
            bootstrap=200, seed=0, samples=features(least.samples), reference=features(max(least.reference, 1), 1)
        )
        for score in evaluate([metric], inputs).values.values():
            assert np.isfinite([score.value, score.low, score.high, *score.replicates]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("metric.kid.subsets=0", r"metric\.kid\.subsets must be between 1 and 10,?000; got 0"),
        ("metric.kid.subset_size=1", r"metric\.kid\.subset_size must be between 2"),
        ("metric.is.splits=0", r"metric\.is\.splits must be between 1"),
        ("metric.is.shuffle_seed=-1", r"metric\.is\.shuffle_seed must be between 0"),
        ("metric.precision.k=0", r"metric\.precision\.k must be between 1"),
        ("metric.recall.k=some", r"metric\.recall\.k must be"),
    ],
)
def test_settings_are_checked(words, message):
    with pytest.raises(ConfigError, match=message):
        load([words])


def test_settings_reach_the_metrics():
    cfg = load(["eval.metrics=[kid,precision]", "metric.kid.subset_size=50"]).cfg
    kid, precision = build.metrics(cfg)
    assert kid == KID(subset_size=50) and precision == Precision()


def test_labels_are_read_in_parts():
    label_N = np.random.default_rng(0).integers(0, 3, 700)
    inputs = Inputs(bootstrap=20, seed=0, samples=features(700), conditions=Labels(label_N, ("a", "b", "c")))
    np.testing.assert_array_equal(inputs.labels(), label_N)
    assert Inputs(bootstrap=20, seed=0, samples=features(), conditions=Unconditional()).labels() is None
    assert Inputs(bootstrap=20, seed=0, samples=features()).labels() is None


def test_two_metrics_share_one_computation():
    inputs, made = Inputs(bootstrap=20, seed=0), []
    for _ in range(2):
        assert inputs.once("key", lambda: made.append(1) or 7) == 7
    assert made == [1]
