import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from conftest import FakeStore

from ldmlab.reports import drawing
from ldmlab.reports.collect import read_runs
from ldmlab.reports.drawing import DrawnFigure, smooth
from ldmlab.reports.figures import Figure, data_csv, logged, over_training, round_ticks
from ldmlab.reports.numbers import SAMPLE_METRICS
from ldmlab.reports.records import Run

FID = SAMPLE_METRICS[0]


def rows_of(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data_csv(figure))))


@pytest.fixture
def runs(fake_store: FakeStore) -> list[Run]:
    return read_runs([fake_store.finished()])


@pytest.mark.parametrize(
    ("stage", "folder", "quantity"),
    [("denoiser", "denoiser/unet_tiny-c01fe9aa", "loss"), ("autoencoder", "autoencoder/kl_f4-4ab07e11", "loss")],
)
def test_csv_equals_the_rows_of_the_store(
    fake_store: FakeStore, runs: list[Run], stage: str, folder: str, quantity: str
) -> None:
    figure = logged(runs, stage, quantity)
    assert figure is not None
    lines = (fake_store.root / folder / "metrics.jsonl").read_text().splitlines()
    written: list[Any] = [row for row in map(json.loads, lines) if quantity in row]
    drawn = rows_of(figure)
    assert {(row["split"], int(row["images"]), float(row["value"])) for row in drawn} == {
        (row["split"], row["images"], row[quantity]) for row in written
    }
    assert len(drawn) == len(written) and {row["source"] for row in drawn} == {folder}


def test_fid_over_training_has_every_snapshot_with_its_interval(runs: list[Run]) -> None:
    figure = over_training(runs, FID)
    assert figure is not None
    drawn = rows_of(figure)
    scores = [s.scores.scores["fid"] for s in runs[0].snapshots if s.scores]
    assert [(float(r["value"]), float(r["low"]), float(r["high"])) for r in drawn] == [
        (s.value, s.low, s.high) for s in scores
    ]
    assert [r["images"] for r in drawn] == ["2000", "40000"]
    assert [r["source"] for r in drawn] == ["scores/shapes-a15c", "scores/shapes-a25c"]


def test_another_protocol_is_not_joined(fake_store: FakeStore) -> None:
    snapshots = [*fake_store.snapshot("a", 1, 90.0), *fake_store.snapshot("b", 2, 50.0)]
    snapshots += fake_store.snapshot("c", 3, 20.0, card={"guidance": 4.0})
    figure = over_training(read_runs([fake_store.run(snapshots)]), FID)
    assert figure is not None and figure.series[0].loose == [False, False, True]
    assert "Hollow" in figure.note and [row["other_protocol"] for row in rows_of(figure)] == ["no", "no", "yes"]
    assert "<svg" in DrawnFigure(figure).light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawings_are_reproducible_and_whole(runs: list[Run], scheme: Any) -> None:
    figure = over_training(runs, FID)
    assert figure is not None
    first = getattr(DrawnFigure(figure), scheme)
    assert first == getattr(DrawnFigure(figure), scheme)
    ET.fromstring(first)
    assert "<dc:date>" not in first and "FID" in first
    assert DrawnFigure(figure).png == DrawnFigure(figure).png


def test_one_drawing_is_the_same_in_every_form_and_order(runs: list[Run]) -> None:
    """The dark form is the light one in other colours, but for the names that Matplotlib makes from a marker's colour."""
    figure = over_training(runs, FID)
    assert figure is not None
    one, other = DrawnFigure(figure), DrawnFigure(figure)
    assert (one.light, one.png, one.spots) == (
        DrawnFigure(figure).light,
        DrawnFigure(figure).png,
        DrawnFigure(figure).spots,
    )
    assert (other.spots, other.png, other.light) == (one.spots, one.png, one.light)
    with drawing._settings():
        dark = drawing._svg(drawing._draw(figure, drawing.THEMES["dark"]), figure.title)
    names = re.compile(r"\bm[0-9a-f]{10}\b")
    assert names.sub("m", one.dark) == names.sub("m", dark) and one.dark != one.light


def test_a_name_is_text_and_never_markup_or_mathematics(fake_store: FakeStore) -> None:
    stages = fake_store.snapshot("a", 2000, 90.0)
    folders = [fake_store.run(stages, f"i{i}", name) for i, name in enumerate([r"$\frac{$<b>", "plain"])]
    figure = over_training(read_runs(folders), FID)
    assert figure is not None
    texts = "".join(ET.fromstring(DrawnFigure(figure).light).itertext())
    assert r"$\frac{$<b>" in texts and "plain" in texts


def test_long_names_leave_room_for_the_axes(fake_store: FakeStore) -> None:
    """Cells that differ in many options have names as long as a line of text; both ends of them stay."""
    names = [f"ae=kl_f4_quick, {'ldm.fit.optimizer=' * 4}{which}" for which in ("adamw", "muon")]
    folders = [
        fake_store.run(
            [*fake_store.snapshot(f"{x}1", 1000, 90.0), *fake_store.snapshot(f"{x}2", 2000, 80.0)], f"i{x}", name
        )
        for x, name in zip("ab", names, strict=True)
    ]
    over = over_training(read_runs(folders), FID)
    assert over is not None
    long = replace(over, series=tuple(replace(s, name="", split=s.name) for s in over.series))
    for figure in (long, replace(over, span="rows")):
        texts = [text for text in ET.fromstring(DrawnFigure(figure).light).itertext() if "…" in text]
        assert sorted(text[-5:] for text in texts) == ["=muon", "adamw"]
        assert all(len(text) <= drawing.LONGEST for text in texts)
        (axes,) = drawing._draw(figure, drawing.THEMES["light"]).axes
        assert axes.get_position().width > 0.35 and axes.get_position().x1 <= 1
    assert drawing.shortened("kl_f4") == "kl_f4"


def test_a_shared_stage_is_drawn_once(fake_store: FakeStore) -> None:
    stages = [fake_store.autoencoder()]
    figure = logged(
        read_runs([fake_store.run(stages, "a", "a"), fake_store.run(stages, "b", "b")]), "autoencoder", "psnr"
    )
    assert figure is not None and len(figure.series) == 1


def test_smoothing_keeps_constants_lines_and_the_first_value() -> None:
    assert smooth([3.0] * 9, 5) == [3.0] * 9
    line = [float(i) for i in range(9)]
    assert smooth(line, 5)[:7] == line[:7]  # exact where the mean is centred
    assert smooth([9.0, 1.0, 1.0], 3)[0] == 9.0
    assert smooth(line, 1) == line


def test_line_names_do_not_touch() -> None:
    placed = drawing._spread([50.0, 50.5, 51.0, 10.0], gap=12, low=0, high=100)
    assert sorted(range(4), key=placed.__getitem__) == [3, 0, 1, 2]
    ordered = sorted(placed)
    assert all(b - a >= 12 - 1e-9 for a, b in pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 100


def test_matplotlib_is_left_as_it_was(runs: list[Run]) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = over_training(runs, FID)
    assert figure is not None
    assert "<svg" in DrawnFigure(figure).light
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 1000, (1, 10, 100, 1000)),
        (1, 50, (1, 2, 5, 10, 20, 50)),
        (2990, 5820, (3000, 4000, 5000)),  # 5000 alone would say little
        (0.2, 0.9, (0.2, 0.3, 0.4, 0.6, 0.8)),
        (0.21, 0.24, (0.21, 0.24)),
    ],
)
def test_a_logarithmic_axis_has_three_round_numbers_where_there_are_any(
    low: float, high: float, ticks: tuple[float, ...]
) -> None:
    assert round_ticks(low, high) == ticks
