"""docs/guide/extending.md, executed: its files are written to a folder outside the package and its commands are run."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/guide/extending.md").read_text()
FOLDER = "/home/me/lab"  # what the page calls the folder
SMALL = [
    "debug=tiny", "data.resolution=32", "data.train_images=64", "data.val_images=16", "ae.fit.images=16",
    "ldm.fit.images=32", "runtime.threads=1", "runtime.log_seconds=0.001",
]  # fmt: skip


def blocks() -> dict[str, str]:
    """Path → text of the fenced blocks that begin with a comment that is a path (in a yaml's second line after @package)."""
    found = {}
    for block in re.findall(r"^```\w+\n(.*?)^```$", PAGE, re.M | re.S):
        if name := re.match(r"(?:# @package \w+\n)?# ((?:my_lab|conf)/[\w/]+\.(?:py|yaml))\n", block):
            found[name[1]] = block
    return found


BLOCKS = blocks()


def commands() -> list[list[str]]:
    """The words after `python` of the commands under "Run it"."""
    section = PAGE.split("## Run it")[1].split("\n## ")[0]
    lines = re.search(r"^```\n(.*?)^```$", section, re.M | re.S)[1].replace("\\\n", " ").splitlines()  # type: ignore[index]
    return [line.replace("'", "").split()[1:] for line in lines if line.startswith("python ")]


@dataclass
class Study:
    """The store after the page's commands."""

    store: Path
    page: Path

    def one(self, pattern: str) -> Any:
        (file,) = self.store.glob(pattern)
        return json.loads(file.read_text())

    def runs(self) -> list[Any]:
        return [json.loads(file.read_text()) for file in sorted(self.store.glob("runs/*/run.json"))]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("extending")
    lab, store = root / "lab", root / "store"
    for name, text in BLOCKS.items():
        (lab / name).parent.mkdir(parents=True, exist_ok=True)
        (lab / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(lab), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for words in commands():
        small = SMALL if words[0] == "src/train.py" else [f"out={root / 'page'}"]
        said = [word.replace(FOLDER, str(lab)) for word in words]
        done = subprocess.run(
            [sys.executable, *said, *small, f"store={store}"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        logs = "\n".join(log.read_text()[-2000:] for log in store.glob("sweeps/*/job-*.log"))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return Study(store, root / "page")


def test_the_page_shows_a_file_for_each_row_of_its_table() -> None:
    named = set(re.findall(r"`((?:my_lab|conf)/[\w/]+\.(?:py|yaml))`", PAGE))
    assert named == set(BLOCKS)
    larger = re.findall(r"`((?:src|sweeps)/[\w/]+\.(?:py|yaml))` \|", PAGE)
    assert len(larger) == 10 and all((ROOT / file).is_file() for file in larger)


@pytest.mark.slow
def test_two_cells_share_their_training(study: Study) -> None:
    assert len(study.runs()) == 2 and all(run["studies"] == ["noise_above"] for run in study.runs())
    assert [len(list(study.store.glob(f"{stage}/*/done.json"))) for stage in ("denoiser", "samples")] == [1, 2]


@pytest.mark.slow
def test_the_regulariser_trains(study: Study) -> None:
    run = study.runs()[0]
    assert run["config"]["ae"]["regulariser"] == {"_target_": "my_lab.bounded.Bounded", "limit": 3.0, "weight": 1.0e-4}
    (log,) = study.store.glob("autoencoder/*/metrics.jsonl")
    sizes = [row["latent_square"] for row in map(json.loads, log.read_text().splitlines()) if "latent_square" in row]
    assert sizes and all(0 < size < 9 for size in sizes)  # |z| < limit


@pytest.mark.slow
def test_the_data_set_is_what_is_trained_on(study: Study) -> None:
    manifest = study.one("data/stripes-*/manifest.json")
    assert manifest["class_names"] == ["horizontal", "rising", "vertical", "falling"]
    assert "segmentation" in manifest["fields"]


@pytest.mark.slow
def test_the_sampler_draws_the_samples(study: Study) -> None:
    import numpy as np

    one, two = (np.load(file) for file in sorted(study.store.glob("samples/*/images.npy")))
    assert one.shape == two.shape == (64, 32, 32, 3) and not np.array_equal(one, two)  # its option decides the samples


@pytest.mark.slow
def test_the_conditioning_is_trained_and_sampled_with(study: Study) -> None:
    from safetensors.torch import load_file

    (file,) = study.store.glob("denoiser/*/weights.safetensors")
    weights = load_file(file)
    assert float(weights["conditioner.gain"]) != 1.0  # it learned
    (first,) = (value for name, value in weights.items() if name.endswith("input_blocks.0.0.weight"))
    assert first.shape[1] == 4 + 1  # the latent and the map
    for record in study.store.glob("samples/*/conditions.json"):
        assert json.loads(record.read_text())["fields"] == ["segmentation"]


@pytest.mark.slow
def test_the_stage_is_made_once_and_found_again(study: Study) -> None:
    colours = study.one("palette/*/palette.json")
    assert list(colours) == ["horizontal", "rising", "vertical", "falling"]
    assert all(0 <= level <= 255 for colour in colours.values() for level in colour)
    assert all("palette" in [stage["stage"] for stage in run["stages"]] for run in study.runs())


@pytest.mark.slow
def test_what_decides_a_score_stands_on_its_card(study: Study) -> None:
    for file in study.store.glob("scores/*/scores.json"):
        found = json.loads(file.read_text())
        assert (found["card"]["extractor"], found["card"]["sampler"]) == ("pooled", "early")
        assert "threshold" in json.dumps(found["card"]) and "above" in found["card"]["sampler_options"]
        assert list(found["scores"]) == ["fid", "kid", "precision", "recall", "contrast"]


@pytest.mark.slow
def test_everything_is_on_the_page(study: Study) -> None:
    page = (study.page / "index.html").read_text()
    own = [file.read_text() for file in study.store.glob("runs/*/index.html")]
    for word in ("Bounded", "stripes", "edges", "early", "threshold", "pooled", "snr_power", "contrast", "palette"):
        assert word in page, word
        assert all(word in text for text in own), word
    assert "noise_above" in page
