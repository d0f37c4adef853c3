"""The chain and the floor of a run: asked for by a metric, made once a snapshot, drawn on the page."""

import json
from pathlib import Path

import pytest
from option_words import replacing

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_float
from ldmlab.diffusion.linear_gaussian import Stationary, loss_floor
from ldmlab.errors import ConfigError
from ldmlab.pipeline.floor import floor_check
from ldmlab.pipeline.run import execute, prepare
from ldmlab.reports.collect import read_run
from ldmlab.reports.figures import logged
from ldmlab.store.checkpoint import load_tensors

WORDS = [
    "debug=tiny", "eval.extractor_fit.images=64",
    "data.resolution=16", "data.train_images=64", "data.val_images=16", "ae=identity", "ldm.fit.images=64",
    "ldm.fit.snapshots=[0.5]", "eval.at=[0.5,1.0]", "eval.samples=32", "eval.metrics=[fid,rate_distortion]", "objective=v_cosine",
    "metric.rate_distortion.steps=5", "ldm.network.width=32", "runtime.threads=1", "runtime.log_seconds=0.001",
]  # fmt: skip


def test_a_run_with_chain_and_floor(tmp_path: Path) -> None:
    from ldmlab.reports.publish import make_page

    words = replacing(WORDS, [f"store={tmp_path}"])
    folder = execute(load(words), " ".join(words))
    assert folder is not None
    chains = {json.loads(file.read_text())["snapshot_images"] for file in tmp_path.glob("chain/*/chain.json")}
    assert chains == {32, 64}
    for file in tmp_path.glob("scores/*/scores.json"):  # each has the chain of its own snapshot
        record = json.loads(file.read_text())
        chain = next(
            found
            for found in (json.loads(f.read_text()) for f in tmp_path.glob("chain/*/chain.json"))
            if found["snapshot_images"] == record["snapshot_images"]
        )
        bits = record["scores"]["rate_distortion_bits"]
        assert bits["value"] == chain["curves"]["bits"]["value"][-1] and bits["low"] < bits["value"] < bits["high"]
        assert record["metrics"]["rate_distortion_rmse"]["unit"] == "levels"
        assert record["metrics"]["rate_distortion_bits"]["settings"]["steps"] == 5
    html = make_page(folder).read_text()
    assert "Rate and distortion along the chain" in html and "Bits of each step of the chain" in html
    assert "the best linear denoiser" in html

    (floor_file,) = tmp_path.glob("denoiser/*/floor.json")
    floor = json.loads(floor_file.read_text())
    cfg = load(words).cfg
    images = to_batch(build.dataset(cfg, "train", tmp_path / "cache").__getitems__(list(range(64))))["image"]
    (file,) = tmp_path.glob("autoencoder/*/autoencoder.safetensors")
    ae = build.autoencoder(cfg)
    ae.load_state_dict(load_tensors(file))
    waves = Stationary((3, 16, 16))  # 64 images are too few for the covariance of 768 numbers
    waves.update(ae.encode(to_float(images)))
    expected = float(loss_floor(waves.finish(), build.objective(cfg, 16)).mean())
    assert floor["loss"] == pytest.approx(expected, rel=1e-5) and "stationary" in floor["directions"]
    assert floor["loss"] == pytest.approx(sum(floor[f"loss_t{i}"] for i in range(4)) / 4)
    figure = logged([read_run(folder)], "denoiser", "loss")
    assert figure is not None and figure.series[-1].values == [floor["loss"]] * 2 and "linear" in figure.series[-1].name


def test_without_the_metric_there_is_no_chain(tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith(("eval.metrics", "metric."))]
    assert not prepare(load([*words, "eval.metrics=[fid]", f"store={tmp_path}"])).has("chain")
    with_it = prepare(load([*WORDS, f"store={tmp_path}"]))
    assert with_it.has("chain") and len([stage for stage in with_it.order if stage.name == "chain"]) == 2


def test_more_steps_than_times_are_refused(tmp_path: Path) -> None:
    words = replacing(WORDS, ["metric.rate_distortion.steps=2000", f"store={tmp_path}"])
    with pytest.raises(
        ConfigError, match=r"metric\.rate_distortion\.steps=2000: the schedule has 1000 times .*steps=1000 or fewer"
    ):
        prepare(load(words))


def test_a_training_that_ends_above_the_floor_is_warned_of(tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith(("eval.metrics", "metric."))]
    broken = [
        "eval.metrics=[fid]",
        "until=denoiser",
        "ldm.fit.images=400",
        "ldm.fit.batch_size=2",
        "ldm.fit.lr=0.3",
        "ldm.fit.snapshots=[]",
    ]
    folder = execute(load(replacing(words, [*broken, "eval.at=[1.0]", f"store={tmp_path}"])), "")
    assert folder is not None
    record = read_run(folder).stage("denoiser")
    assert record is not None
    ((images, text),) = record.alarms
    assert images == 400 and "of the best linear denoiser of these latents" in text and "Lower ldm.fit.lr" in text


def test_only_the_end_of_a_training_of_some_length_is_held_to_the_floor(tmp_path: Path) -> None:
    check = floor_check(tmp_path, steps=200)
    assert check({"loss": 9.0}, 1.0) == []  # no floor is known
    (tmp_path / "floor.json").write_text(json.dumps({"loss": 0.8}))
    assert (
        check({"loss": 9.0}, 0.99) == []
        and check({"loss": 0.83}, 1.0) == []
        and floor_check(tmp_path, 199)({"loss": 9.0}, 1.0) == []
    )
    (text,) = check({"loss": 0.9}, 1.0)
    assert "ends at 0.9, above the 0.8" in text
