"""The verdicts of dose and response, on scores of known replicates; then a whole stage, where a metric that sees must answer."""

import json
from pathlib import Path

import numpy as np
import pytest

from ldmlab.config.compose import load
from ldmlab.metrics.calibration import EVERY, REQUIRED, Response, able
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.standard import STANDARD

RNG = np.random.default_rng(0)
SHARED_R = RNG.standard_normal(200)  # what equal images have in common


def score(value: float, own: float = 0.01) -> Score:
    replicates_R = value + SHARED_R + own * RNG.standard_normal(200)
    return Score(value, value - 2, value + 2, 1000, "test", 0, tuple(replicates_R))


def response(values: list[float], none: float = 5.0, better: str | None = "lower", **own: float) -> Response:
    doses = tuple(float(i + 1) for i in range(len(values)))
    return Response("fid", "blur", doses, tuple(score(v, **own) for v in values), score(none, **own), better)


def test_paired_images_tell_what_their_spread_would_hide() -> None:
    """Replicates spread by 1, differences by 0.01: a difference of 0.1 is told."""
    found = response([5.0, 5.1, 5.3, 6.0])
    assert found.told == 2.0 and not found.grows  # the first dose is as none
    assert response([5.1, 5.2, 5.3, 6.0]).verdict == "answers"
    assert response([5.1, 5.2, 5.3, 6.0], own=3.0).verdict == "blind"


def test_a_score_that_gets_better_is_no_answer() -> None:
    falls = [4.9, 4.5, 4.0, 3.0]
    assert response(falls).verdict == "blind" and response(falls).failed
    assert response(falls, better="higher").verdict == "answers"


def test_told_from_starts_where_every_larger_dose_is_told() -> None:
    assert response([5.2, 5.0, 5.2, 5.3]).told == 3.0
    assert response([5.2, 5.4, 5.3, 5.0]).told is None
    assert response([5.2, 5.4, 5.3, 5.5]).verdict == "partly"


def test_the_cell_says_what_was_required_and_what_was_seen() -> None:
    assert response([5.1, 5.2, 5.3, 6.0]).cell() == "1"
    assert response([5.2, 5.4, 5.3, 5.5]).cell() == "✗ 1, partly" and response([4.0, 3.0]).cell() == "✗ blind"
    need_not = Response("precision", "contrast", (1.0,), (score(1.0),), score(5.0), "higher")
    assert need_not.cell() == "(1)"


def test_every_metric_with_required_answers_is_one() -> None:
    assert set(REQUIRED) <= set(STANDARD)
    assert all(set(corruptions) <= set(EVERY) for corruptions in REQUIRED.values())
    assert {m.name for m in able(list(STANDARD.values()))} == set(REQUIRED)


def test_the_stage_measures_every_dose_and_its_table_is_on_the_page(tmp_path: Path) -> None:
    """A classifier of nine steps sees that contrast is gone, is blind to other things, and the table says both."""
    from ldmlab.pipeline.run import execute
    from ldmlab.reports.publish import make_page

    words = ["debug=tiny", "stage=calibration", "until=autoencoder", "ae=identity", "data.val_images=128", "eval.metrics=[fid,kid]",
             "stage.calibration.images=64", "eval.reference.images=64", "runtime.threads=1", f"store={tmp_path}"]  # fmt: skip
    folder = execute(load(words), " ".join(words))
    assert folder is not None
    (stage,) = tmp_path.glob("calibration/*")
    record = json.loads((stage / "calibration.json").read_text())
    found = {(r["metric"], r["corruption"]): r for r in record["responses"]}
    assert {corruption for _, corruption in found} == set(EVERY) and {metric for metric, _ in found} == {"fid", "kid"}
    for (_, corruption), r in found.items():
        assert len(r["scores"]) == len(r["doses"]) and r["required"]
        assert (stage / f"{corruption}.png").is_file()
    flat = found["fid", "flat"]  # contrast taken away
    assert flat["verdict"] == "answers" and flat["scores"][-1]["value"] > 2 * flat["none"]["value"]
    assert any(r["verdict"] == "blind" for r in found.values())
    html = make_page(folder).read_text()
    assert "Calibration: what each metric answers to" in html and "unchanged → each dose" in html
    assert record["not_measured"] == []
    assert not list(stage.glob("*.npz"))  # features are not kept: 44 sets of them


FAULTS = [
    (["stage.calibration.images=5000"], r"stage\.calibration\.images=5000: val has 64 images\. Set stage\.calibration\.images=64"),
    (["eval.reference.split=val"], r"compares them with themselves\. Set eval\.reference\.split=train"),
    (["stage.calibration.missing=[0.01]"], r"stage\.calibration\.missing=0\.01: of \d+ classes it leaves out none or all"),
    (["stage.calibration.missing=[0.5]"], r"missing=0\.5: it leaves \d+ of the val images, fewer than stage\.calibration\.images=64"),
    (["data.resolution=68", "stage.calibration.components=[3]"], r"components needs 8x8 patches, and data\.resolution=68"),
    (["eval.metrics=[is]", "stage.calibration.images=20", "metric.is.splits=30"], r"stage\.calibration\.images=20: IS needs at least"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), FAULTS, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_what_cannot_be_is_found_by_a_dry_run(words: list[str], said: str, tmp_path: Path) -> None:
    from ldmlab.errors import ConfigError
    from ldmlab.pipeline.run import execute

    base = ["debug=tiny", "stage=calibration", "until=autoencoder", "ae=identity", "dry_run=true", "data.val_images=64"]
    images = [] if any("images=" in word for word in words) else ["stage.calibration.images=64"]
    with pytest.raises(ConfigError, match=said):
        execute(load([*base, *images, *words, f"store={tmp_path}"]), "")
