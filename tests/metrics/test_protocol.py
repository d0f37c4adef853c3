"""Protocol cards: what differs, what may be joined, what is said."""

import dataclasses
import json

import pytest

from ldmlab.metrics.kid import KID
from ldmlab.metrics.protocol import Protocol, ProtocolCard, comparable, count, protocol_differences
from ldmlab.metrics.standard import standard

CARD = ProtocolCard(
    reference="9f31c2",
    reference_split="train",
    reference_images=50_000,
    resolution=32,
    samples=5_000,
    label_mode="uniform",
    sampler="ddim",
    steps=50,
    eta=0.0,
    weights="ema",
    snapshot_images=400_000,
    extractor="shapes",
    extractor_hash="8c1d0123",
    resize="none",
    guidance={"classifier_free": {"scale": 1.5}},
)
SETTINGS = {metric.name: metric.settings() for metric in standard(["fid", "kid"])}


def guided(**own):
    return {"classifier_free": {"scale": 1.5, **own}}


def protocol(card, settings=SETTINGS):
    return Protocol(card, settings)


def test_short():
    assert CARD.short() == "5k·ddim50·eta0·w1.5·uniform·shapes-8c1d"
    assert dataclasses.replace(CARD, precision="bf16").short() == "5k·ddim50·eta0·bf16·w1.5·uniform·shapes-8c1d"
    assert (
        dataclasses.replace(CARD, weights="raw", samples=50_000).short().startswith("50k·ddim50·eta0·w1.5·uniform·raw·")
    )
    limited = dataclasses.replace(CARD, guidance=guided(interval=[0.3, 5.0], rescale=0.7))
    assert limited.short() == "5k·ddim50·eta0·w1.5·in 0.3–5·rescale0.7·uniform·shapes-8c1d"
    kinds = {
        "autoguidance": {"weak": "own snapshot", "scale": 2.0},
        "image": {"scale": 0.5},
        "churn": {"s_churn": 10.0},
    }
    steered = dataclasses.replace(CARD, guidance=guided() | kinds)
    assert steered.short() == "5k·ddim50·eta0·w1.5·auto2·image0.5·churn10·uniform·shapes-8c1d"
    assert not comparable(protocol(CARD), protocol(steered), "fid")
    outside = dataclasses.replace(
        CARD, guidance={"mine": {"look": "left", "push": 3, "interval": [0.1, 2.0]}, "bare": {}}
    )
    assert outside.short() == "5k·ddim50·eta0·mine3·in 0.1–2·bare·uniform·shapes-8c1d"
    recon = dataclasses.replace(
        CARD, sampler=None, steps=None, eta=None, guidance={}, label_mode=None, weights=None, samples=360
    )
    assert recon.short() == "360·reconstruction·shapes-8c1d"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"steps": 100}, "steps"),
        ({"guidance": {"classifier_free": {"scale": 1.0}}}, "guidance.classifier_free.scale"),
        ({"guidance": guided(interval=[0.3, 5.0])}, "guidance.classifier_free.interval"),
        ({"guidance": guided(rescale=0.7)}, "guidance.classifier_free.rescale"),
        ({"guidance": guided() | {"image": {"scale": 0.5}}}, "guidance.image"),
        ({"evaluations": 99}, "evaluations"),
        ({"samples": 4_999}, "samples"),
        ({"weights": "raw"}, "weights"),
        ({"extractor_hash": "0000"}, "extractor_hash"),
        ({"reference": "other"}, "reference"),
        ({"rounding": "none"}, "rounding"),
        ({"versions": {**CARD.versions, "torch": "0.0"}}, "versions.torch"),
    ],
)
def test_each_field_keeps_scores_apart(change, name):
    other = dataclasses.replace(CARD, **change)
    assert CARD.differences(other) == [name] == other.differences(CARD)
    one, two = protocol(CARD), protocol(other)
    assert not comparable(one, two, "fid") and protocol_differences(one, two, "fid") == [name]


def test_snapshots_and_seeds_are_joined():
    other = dataclasses.replace(CARD, snapshot_images=20_000, seed=7)
    assert CARD.differences(other) == ["snapshot_images", "seed"]
    assert comparable(protocol(CARD), protocol(other), "fid") and comparable(protocol(CARD), protocol(CARD), "fid")


def test_settings_of_one_metric_keep_only_its_own_scores_apart():
    fewer = protocol(CARD, SETTINGS | {"kid": KID(subsets=7).settings()})
    assert comparable(protocol(CARD), fewer, "fid")
    assert protocol_differences(protocol(CARD), fewer, "kid") == ["kid.subsets"]


def test_adding_a_metric_leaves_older_scores_comparable():
    older = protocol(CARD, {"fid": SETTINGS["fid"]})
    newer = protocol(CARD, SETTINGS | {"mine": {"strength": 3}})
    assert comparable(older, newer, "fid") and comparable(newer, older, "fid")
    with pytest.raises(KeyError, match="mine"):
        comparable(older, newer, "mine")


def test_protocol_of_a_scores_file():
    metrics = {metric.name: metric.declaration() for metric in standard(["fid", "kid"])}
    row = json.loads(json.dumps({"scores": {}, "card": CARD.to_dict(), "metrics": metrics}))
    assert Protocol.of(row) == protocol(CARD)


def test_json_round_trip():
    assert ProtocolCard.from_dict(json.loads(json.dumps(CARD.to_dict()))) == CARD
    assert set(CARD.versions) >= {"torch", "torch-fidelity", "python"}
    with pytest.raises(ValueError, match="unknown fields on a protocol card: colour"):
        ProtocolCard.from_dict({**CARD.to_dict(), "colour": "red"})


def test_warnings():
    assert any("customary number is 50 000 (the paper's" in text for text in CARD.warnings())
    few = dataclasses.replace(CARD, samples=100).warnings()
    assert any(text.startswith("100 samples") and "paper" not in text for text in few)
    full = dataclasses.replace(CARD, samples=50_000, extractor="inception")
    assert full.warnings() == []
    assert any("at random" in text for text in dataclasses.replace(full, label_mode="random").warnings())


def test_count():
    assert [count(n) for n in (500, 5_000, 2_500, 50_000, 1_281_167)] == ["500", "5k", "2.5k", "50k", "1.28M"]
