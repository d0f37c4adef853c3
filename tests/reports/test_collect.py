import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CARD, FakeStore, write_rows

from ldmlab.errors import DataError
from ldmlab.reports.collect import read_rows, read_run, read_runs
from ldmlab.reports.records import Estimate, flatten, varied


def test_a_finished_run_is_read_whole(fake_store: FakeStore) -> None:
    run = read_run(fake_store.finished())
    assert [stage.stage for stage in run.stages] == [
        "autoencoder",
        "denoiser",
        "samples",
        "scores",
        "samples",
        "scores",
    ]
    assert [stage.place for stage in run.stages][:2] == ["autoencoder/kl_f4-4ab07e11", "denoiser/unet_tiny-c01fe9aa"]
    autoencoder = run.stage("autoencoder")
    assert autoencoder is not None
    assert autoencoder.scores["psnr"] == Estimate(28.412, 28.412 - 0.081, 28.412 + 0.081)
    assert autoencoder.scores["kl_bits"] == Estimate(2.7183)
    assert "card" not in autoencoder.scores and autoencoder.card["extractor"] == "shapes"
    assert len(autoencoder.curve("psnr", "val").values) == 6
    assert autoencoder.curve("psnr", "train").values == []
    assert autoencoder.config_text.startswith("network:") and autoencoder.provenance["host"] == "bench-2"
    assert run.unfinished == []


def test_scores_are_joined_to_their_samples_by_id_and_sorted_by_images(fake_store: FakeStore) -> None:
    late, early = fake_store.snapshot("bb", 40000, 12.0), fake_store.snapshot("aa", 2000, 90.0)
    run = read_run(fake_store.run([*late, *early]))
    assert [s.images for s in run.snapshots] == [2000, 40000]
    assert [s.samples.id for s in run.snapshots if s.samples] == ["aa5a", "bb5a"]
    assert [s.scores.id for s in run.snapshots if s.scores] == ["aa5c", "bb5c"]


def test_pictures_come_with_their_conditions(fake_store: FakeStore) -> None:
    samples = read_run(fake_store.finished()).stage("samples")
    assert samples is not None
    pictures = samples.pictures
    assert pictures.images_NHWC.shape == (80, 32, 32, 3) and len(pictures) == 80
    assert pictures.seeds[7] == 7 and pictures.class_name(pictures.labels[7]) == "heart"


@pytest.mark.parametrize(
    "file",
    ["scores/shapes-a25c/scores.json", "autoencoder/kl_f4-4ab07e11/scores.json", "samples/ddim50-a25a/images.npy"],
)
def test_a_missing_result_is_named_with_the_command_that_makes_it(fake_store: FakeStore, file: str) -> None:
    folder = fake_store.finished()
    (fake_store.root / file).unlink()
    with pytest.raises(DataError) as caught:
        read_run(folder)
    assert file in str(caught.value)
    assert "python src/train.py data=shapes ae=kl_f4 ldm=unet_tiny cond=class_label" in str(caught.value)


@pytest.mark.parametrize(
    "file",
    [
        "scores/shapes-a25c/scores.json",
        "samples/ddim50-a25a/images.npy",
        "samples/ddim50-a25a/conditions.json",
        "denoiser/unet_tiny-c01fe9aa/metrics.jsonl",
        "runs/run-c01fe9/run.json",
    ],
)
def test_a_damaged_file_is_named(fake_store: FakeStore, file: str) -> None:
    folder = fake_store.finished()
    path = fake_store.root / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged") as caught:
        read_run(folder)
    assert file in str(caught.value)


def test_no_run_and_no_runs_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json: no such file.*src/train\.py"):
        read_run(tmp_path)
    with pytest.raises(DataError, match=r"src/train\.py"):
        read_runs([])


@pytest.mark.parametrize(("key", "value"), [("precision", 57.1), ("recall", -0.1), ("label_agreement", 72.0)])
def test_a_fraction_outside_0_1_is_refused(
    fake_store: FakeStore, edit: Callable[..., None], key: str, value: float
) -> None:
    folder = fake_store.finished()

    def change(raw: dict[str, Any]) -> None:
        raw["scores"][key]["value"] = value

    edit(fake_store.root / "scores/shapes-a25c/scores.json", change)
    with pytest.raises(DataError, match=f"{key} is a fraction between 0 and 1; got {value}"):
        read_run(folder)


def test_a_score_of_the_wrong_kind_is_refused(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    folder = fake_store.finished()
    edit(fake_store.root / "scores/shapes-a25c/scores.json", lambda raw: raw["scores"].update(fid="12.8"))
    with pytest.raises(DataError, match=r"fid: a score is a number or \{value, low, high\}; got '12\.8'"):
        read_run(folder)


def test_conditions_of_another_length_are_refused(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    folder = fake_store.finished()
    edit(fake_store.root / "samples/ddim50-a25a/conditions.json", lambda raw: raw["label"].pop())
    with pytest.raises(DataError, match="label has 79 entries for 80 images"):
        read_run(folder)


def test_rows_after_a_restart_replace_those_computed_before(tmp_path: Path) -> None:
    rows = [{"images": i, "split": "train", "loss": float(i)} for i in (10, 20, 30, 40)]
    rows += [{"images": 30, "split": "val", "psnr": 20.0}]
    rows += [{"images": i, "split": "train", "loss": -float(i)} for i in (30, 50)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    got = read_rows(tmp_path / "metrics.jsonl", True, "")
    train = {row["images"]: row["loss"] for row in got if row["split"] == "train"}
    assert train == {10: 10.0, 20: 20.0, 30: -30.0, 50: -50.0}
    assert [row["psnr"] for row in got if row["split"] == "val"] == [20.0]


def test_a_half_written_last_line_is_left_out_only_while_running(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"images": 1, "loss": 2.0}) + '\n{"images": 2, "lo')
    assert read_rows(path, False, "") == [{"images": 1, "loss": 2.0}]
    with pytest.raises(DataError, match="line 2, is damaged"):
        read_rows(path, True, "make it")


def test_an_unfinished_stage_needs_no_files(fake_store: FakeStore) -> None:
    waiting = fake_store.entry("scores", "ff00", fake_store.root / "scores" / "none", "FID", None, state="will run")
    run = read_run(fake_store.run([fake_store.autoencoder(), fake_store.denoiser(state="resumes at 41 %"), waiting]))
    assert [(stage.stage, stage.state) for stage in run.unfinished] == [
        ("denoiser", "resumes at 41 %"),
        ("scores", "will run"),
    ]


def test_the_same_run_twice_is_one_and_equal_names_are_told_apart(fake_store: FakeStore) -> None:
    stages = [fake_store.autoencoder()]
    a, b = fake_store.run(stages, "aaaa1111"), fake_store.run(stages, "bbbb2222")
    assert [run.label for run in read_runs([a, b, a])] == ["kl_f4-unet_tiny-aaaa11", "kl_f4-unet_tiny-bbbb22"]


def test_varied_names_exactly_the_options_that_differ(fake_store: FakeStore) -> None:
    stages = [fake_store.autoencoder()]
    a = fake_store.run(stages, "a", "a", config={"seed": 0, "ae": {"f": 4, "m": [1, 2]}})
    b = fake_store.run(stages, "b", "b", config={"seed": 0, "ae": {"f": 8, "m": [1, 2]}, "extra": None})
    assert varied(read_runs([a, b])) == {"ae.f": [4, 8]}
    assert flatten(CARD["versions"], "v") == {"v.torch": "2.15.0", "v.ldmlab": "0.1.0"}


def test_overlap_of_intervals() -> None:
    assert Estimate(1, 0, 2).overlaps(Estimate(2.5, 2, 3)) and Estimate(2.5, 2, 3).overlaps(Estimate(1, 0, 2))
    assert not Estimate(1, 0, 1.9).overlaps(Estimate(2.5, 2, 3))
    assert Estimate(2.0).overlaps(Estimate(2.5, 2, 3)) and not Estimate(1.9).overlaps(Estimate(2.5, 2, 3))
