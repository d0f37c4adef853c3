"""Pictures that lie in two splits with equal content: prepare and train say so in the same words."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmlab.config.compose import load
from ldmlab.data.duplicates import notes
from ldmlab.data.folder import Folder
from ldmlab.data.prepare import prepare
from ldmlab.data.shapes import Shapes
from ldmlab.data.shards import Shards

WORDS = "2 pictures lie in two splits with equal content: train/a/0.png = val/a/90.png; train/b/1.png = val/b/91.png."


def put(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve pictures in train/, five in val/; two of these are copies."""
    for n in range(12):
        put(tmp_path / "pictures" / "train" / "ab"[n % 2] / f"{n}.png", n)
    for n in (90, 91, 92, 93, 94):
        put(tmp_path / "pictures" / "val" / "ab"[n % 2] / f"{n}.png", n - 90 if n < 92 else n)
    return tmp_path / "pictures"


def test_a_folder_says_which_and_what_to_do(root: Path) -> None:
    (note,) = notes(Folder(str(root), 16, "train"), Folder(str(root), 16, "val"))
    assert WORDS in note and "remove one of each" in note.lower() and "\n" not in note


def test_without_copies_nothing_is_said(root: Path) -> None:
    for n in (90, 91):
        put(root / "val" / "ab"[n % 2] / f"{n}.png", n)
    assert notes(Folder(str(root), 16, "train"), Folder(str(root), 16, "val")) == []
    assert notes(Shapes(16, "train"), Shapes(16, "val")) == []


def test_only_the_first_three_are_named(root: Path) -> None:
    for n in range(2, 12):
        put(root / "val" / "ab"[n % 2] / f"{n}.png", n)
    (note,) = notes(Folder(str(root), 16, "train"), Folder(str(root), 16, "val"))
    assert note.startswith("12 pictures lie") and note.count(" = ") == 3 and "and 9 more" in note


def test_prepare_and_its_shards_say_the_same(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(str(root), tmp_path / "out", 16)
    assert WORDS in caplog.text
    (note,) = notes(Shards(str(tmp_path / "out"), 16, "train"), Shards(str(tmp_path / "out"), 16, "val"))
    assert WORDS in note and note in caplog.text


@pytest.mark.slow
def test_the_plan_of_a_run_says_it_and_goes_on(root: Path, tmp_path: Path) -> None:
    from ldmlab.pipeline.run import prepare as plan_of

    words = ["debug=tiny", "data=folder", f"data.root={root}", "data.resolution=32", "eval=shapes", "dry_run=true"]
    plan = plan_of(load([*words, f"store={tmp_path / 'store'}", "until=denoiser"]))
    assert any(WORDS in note for note in plan.notes)
