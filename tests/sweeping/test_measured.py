"""A forecast is as good as what it is made from: finished stages of the same name on the same machine, at one go."""

import json
from pathlib import Path
from typing import Any

import pytest

from ldmlab.store.card import machine
from ldmlab.sweeping.forecast import CellForecast, StageForecast, summary
from ldmlab.sweeping.measured import by_measurement, speeds_of


def stage(root: Path, name: str, number: int, operations: float, card: dict[str, Any] | None = None) -> StageForecast:
    """Finished where there is a card; forecast at an operation a second."""
    folder = root / name / f"{name}-{number}"
    if card is not None:
        folder.mkdir(parents=True)
        whole = {"device": "cpu", "machine": machine(), "seconds": 1e9, "cpu_seconds": None} | card
        (folder / "card.json").write_text(json.dumps(whole))
        (folder / "done.json").write_text("{}")
    return StageForecast(name, folder, "will run", operations, 0.0, frozenset(), operations)


def test_seconds_are_operations_over_the_speed_of_all_finished_ones(tmp_path: Path) -> None:
    """CPU seconds of one thread are that thread's share of the whole machine."""
    cores = machine()["cores"]
    done = [
        stage(tmp_path, "denoiser", 0, 600.0, {"cpu_seconds": 20.0}),
        stage(tmp_path, "denoiser", 1, 200.0, {"cpu_seconds": 20.0}),
    ]
    left = [stage(tmp_path, "denoiser", 2, 100.0), stage(tmp_path, "samples", 2, 7.0)]
    one, two = by_measurement([CellForecast([], "a", (*done,)), CellForecast([], "b", (done[0], *left))])
    assert speeds_of([*done, *done, *left]) == {"denoiser": pytest.approx(800 / (40 / cores))}
    assert two.left() == pytest.approx(100 / (800 / (40 / cores)) + 7)  # no sample was drawn yet: as counted
    assert one.left() == 0
    assert "· about 0:" in summary([one, two], 1, 1)


def test_a_stage_that_ends_speaks_from_then_on(tmp_path: Path) -> None:
    cell = CellForecast([], "a", (stage(tmp_path, "scores", 0, 50.0),))
    assert by_measurement([cell])[0].left() == 50
    stage(tmp_path, "scores", 1, 50.0, {"cpu_seconds": 10.0})
    cells = [cell, CellForecast([], "b", (stage(tmp_path, "scores", 1, 50.0),))]
    assert by_measurement(cells)[0].left() == pytest.approx(10 / machine()["cores"])


@pytest.mark.parametrize(
    "card",
    [
        {"cpu_seconds": 5.0, "machine": {**machine(), "cpu": "another"}},
        {"cpu_seconds": None},  # stopped and resumed
    ],
)
def test_what_was_made_elsewhere_or_in_pieces_says_nothing(tmp_path: Path, card: dict[str, Any]) -> None:
    assert speeds_of([stage(tmp_path, "denoiser", 0, 10.0, card)]) == {}


def test_a_continued_training_says_nothing(tmp_path: Path) -> None:
    """It made a part of its images, and its operations are those of all."""
    made = stage(tmp_path, "denoiser", 0, 10.0, {"cpu_seconds": 5.0})
    (made.folder / "continued.json").write_text("{}")
    assert speeds_of([made]) == {}


def test_a_gpu_is_timed_by_the_clock(tmp_path: Path) -> None:
    made = stage(tmp_path, "denoiser", 0, 10.0, {"device": "cuda", "seconds": 5.0})
    assert speeds_of([made]) == {"denoiser": 2.0}
