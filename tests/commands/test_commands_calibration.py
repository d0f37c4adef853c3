"""`score.py … calibrate=true` on a finished run: the table of answers stands on its page, and nothing is trained anew."""

import json
from pathlib import Path

import pytest
from test_commands import run, sealed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = ("until=autoencoder", "eval=classifier", "data.val_images=20", "eval.metrics=[fid,precision]")


def test_a_finished_run_is_calibrated(tmp_path: Path) -> None:  # 45 sets of 20 images
    run("train", tmp_path, *WORDS)
    trained = (sealed(tmp_path, "extractor") / "weights.safetensors").stat().st_mtime_ns
    text = run(
        "score", tmp_path, *WORDS, "calibrate=true", "stage.calibration.images=20", "stage.calibration.missing=[]"
    )
    assert "unchanged" in text and "broken 0.4" in text
    folder = sealed(tmp_path, "calibration")
    found = json.loads((folder / "calibration.json").read_text())
    assert found["extractor"] == "classifier" and found["images"] == 20
    answers = {(row["metric"], row["corruption"]): row for row in found["responses"]}
    assert {"contrast", "blur", "broken", "linear"} <= {corruption for _, corruption in answers}
    assert all(len(row["scores"]) == len(row["doses"]) for row in answers.values())
    assert found["not_measured"] == ["fid to missing"]  # stage.calibration.missing=[]
    assert (folder / "contrast.png").is_file()
    assert any("what each metric answers to" in page.read_text() for page in tmp_path.glob("runs/*/index.html"))
    assert (sealed(tmp_path, "extractor") / "weights.safetensors").stat().st_mtime_ns == trained
    fields = json.loads((sealed(tmp_path, "extractor") / "scores.json").read_text())["fields"]
    assert set(fields) == {"label"} and fields["label"]["what"] == "accuracy"
