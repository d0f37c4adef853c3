"""The stage of latent diagnostics on two linear first stages: equal to principal components, on the run's page and the study's."""

import csv
import json
from pathlib import Path

import pytest
from option_words import replacing

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.run import execute

WORDS = [
    "debug=tiny", "data.resolution=16", "data.train_images=300", "data.val_images=60", "stage=diagnostics", "eval=none",
    "until=autoencoder", "runtime.threads=1",
]  # fmt: skip


def test_two_first_stages_on_their_pages(tmp_path: Path) -> None:
    from ldmlab.reports import first_stages
    from ldmlab.reports.publish import make_page

    folders = []
    for ae in (["ae=identity"], ["ae=pca_f4", "ae.latent_scale.images=300"]):
        words = replacing(WORDS, [*ae, f"store={tmp_path}"])
        folder = execute(load(words), " ".join(words))
        assert folder is not None
        folders.append(folder)
    found = {}
    for file in tmp_path.glob("diagnostics/*/diagnostics.json"):
        record = json.loads(file.read_text())
        found[record["f"]] = record
    assert set(found) == {1, 4} and "pca" not in found[1]["scores"]  # pixels are their own components
    own, pca, white = (found[4]["scores"][kind] for kind in ("latent", "pca", "white"))
    for name in ("velocity", "high_frequency", "smoothness", "neighbours", "noise_psnr"):
        assert own[name]["value"] == pytest.approx(pca[name]["value"], rel=0.02), name
        assert own[name]["low"] < own[name]["value"] < own[name]["high"]
    assert (
        found[1]["scores"]["latent"]["smoothness"]["value"] > own["smoothness"]["value"] > white["smoothness"]["high"]
    )
    assert own["velocity"]["high"] < white["velocity"]["low"] and "neighbours" not in white
    html = make_page(folders[1]).read_text()
    assert "Diagnostics of the latent" in html and "principal components" in html and "(chance)" in html

    page = first_stages.report(folders, tmp_path / "page", "first_stages", []).read_text()
    assert "Diagnostics of the latents" in page and "velocity unexplained" in page
    with (tmp_path / "page" / "diagnostics.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if (r["f"], r["latent"], r["diagnostic"]) == ("4", "latent", "velocity")]
    assert float(row["value"]) == own["velocity"]["value"]


def test_its_options_have_ranges() -> None:
    with pytest.raises(ConfigError, match=r"stage\.diagnostics\.sigma must be greater than 0"):
        load([*WORDS, "stage.diagnostics.sigma=0"])
