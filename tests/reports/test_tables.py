import csv
import io
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from conftest import WARNING, FakeStore, score

from ldmlab.metrics import intervals
from ldmlab.reports.collect import read_runs
from ldmlab.reports.document import Note, markdown
from ldmlab.reports.numbers import count, csv_text, distinguishable, number, paired, shown
from ldmlab.reports.publish import interval
from ldmlab.reports.records import Estimate, Run
from ldmlab.reports.tables import csv_rows, first_stage_table, samples_table, shown_table


def study(store: FakeStore, fids: tuple[float, ...], **last: object) -> list[Run]:
    folders = []
    for i, fid in enumerate(fids):
        card = last if i == len(fids) - 1 else None
        stages = [store.autoencoder(), *store.snapshot(f"r{i}", 40000, fid, card=card)]  # type: ignore[arg-type]
        folders.append(store.run(stages, f"id{i}", f"run{i}"))
    return read_runs(folders)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Estimate(12.834, 12.41, 13.27), ("12.8", "[12.4, 13.3]")),
        (Estimate(26.34, 26.31, 26.37), ("26.34", "[26.31, 26.37]")),  # one digit would collapse the interval
        (Estimate(1234.5, 1200.0, 1300.0), ("1\u202f234", "[1\u202f200, 1\u202f300]")),
        (Estimate(-0.00312), ("−0.00312", "")),
        (Estimate(0.0, 0.0, 0.0), ("0.00", "[0.00, 0.00]")),
        (Estimate(math.inf), ("∞", "")),
        (Estimate(math.nan, math.nan, math.nan), ("not a number", "[not a number, not a number]")),
    ],
)
def test_rounding(given: Estimate, expected: tuple[str, str]) -> None:
    assert shown(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Estimate(12739.6, 12610.2, 12880.4), "12740 [12610, 12880]"),
        (Estimate(7.5512, 6.1531, 9.3112), "7.551 [6.153, 9.311]"),
        (Estimate(0.00012), "0.00012"),
    ],
)
def test_numbers_of_the_terminal_have_no_powers_of_ten(given: Estimate, expected: str) -> None:
    assert interval(given) == expected


def test_percent_and_counts() -> None:
    assert shown(Estimate(0.7254, 0.714, 0.737), 100.0) == ("72.5", "[71.4, 73.7]")
    assert count(40000) == "40\u202f000"
    assert number(-0.0001, 2) == "0.00"


def test_every_number_of_the_store_is_in_the_table(fake_store: FakeStore) -> None:
    runs = read_runs([fake_store.finished()])
    table = samples_table(runs)
    assert table is not None and [row.images for row in table.rows] == [2000, 40000]
    assert [row.final for row in table.rows] == [False, True]
    assert [metric.key for metric in table.metrics] == ["fid", "is", "kid", "precision", "recall", "label_agreement"]
    for row in table.rows:
        assert row.source is not None
        for metric, cell in zip(table.metrics, row.cells, strict=True):
            assert cell.score == row.source.scores[metric.key]
    assert Note("warning", WARNING + ".") in table.notes
    assert not any(cell.best for row in table.rows for cell in row.cells)  # one run: nothing to rank


def test_a_warning_of_some_rows_names_them(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    folder = fake_store.finished()
    edit(fake_store.root / "scores/shapes-a25c/scores.json", lambda raw: raw["warnings"].append("one of many"))
    table = samples_table(read_runs([folder]))
    assert table is not None
    label = table.rows[-1].label
    assert {note.text for note in table.notes if note.kind == "warning"} == {
        f"{WARNING}.", f"{label}, 40\u202f000 images: one of many.",
    }  # fmt: skip


def test_an_unknown_score_has_its_own_column(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    folder = fake_store.finished()
    edit(fake_store.root / "scores/shapes-a25c/scores.json", lambda raw: raw["scores"].update(sfid=score(31.4, 0.5)))
    table = samples_table(read_runs([folder]))
    assert table is not None and table.metrics[-1].head == "sfid"
    assert [row.cells[-1].text for row in table.rows] == ["–", "31.4"]


def test_a_differing_card_is_marked_with_its_field_and_never_best(fake_store: FakeStore) -> None:
    table = samples_table(study(fake_store, (20.0, 30.0, 5.0), steps=20, weights="raw"))
    assert table is not None
    assert [row.cells[0].note for row in table.rows] == ["", "", "a"]
    text = "Not comparable with the other rows. steps: 20 (others: 50); weights: raw (others: ema)."
    assert Note("comparability", text, "a") in table.notes
    assert [row.cells[0].best for row in table.rows] == [True, False, False]


def test_the_snapshot_alone_is_no_difference(fake_store: FakeStore) -> None:
    table = samples_table(read_runs([fake_store.finished()]))
    assert table is not None and not any(cell.note for row in table.rows for cell in row.cells)


def test_a_library_is_named_alone_and_the_seed_may_differ(fake_store: FakeStore) -> None:
    versions = {"torch": "2.14.0", "ldmlab": "0.1.0"}
    table = samples_table(study(fake_store, (20.0, 30.0, 5.0), versions=versions, seed=7))
    assert table is not None
    assert table.notes[0].text.endswith("rows. versions.torch: 2.14.0 (others: 2.15.0).")


def test_runs_whose_intervals_overlap_are_not_distinguishable(fake_store: FakeStore) -> None:
    table = samples_table(study(fake_store, (20.0, 20.5)))
    assert table is not None and not any(row.cells[0].best for row in table.rows)
    note = next(text for text in (note.text for note in table.notes) if "Not distinguishable" in text)
    assert "run0 and run1 in FID" in note and "without stored replicates" in note


@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("gap", [0.02, 0.5])
def test_paired_difference_equals_that_of_the_metrics(n: int, gap: float) -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(n)
    a, b = (20.0 + shared).tolist(), (20.0 + gap + shared + 0.1 * rng.standard_normal(n)).tolist()
    oracle = intervals.paired_interval(
        *(intervals.Score(v, v - 2, v + 2, 500, "", 0, tuple(r)) for v, r in ((20.0, a), (20.0 + gap, b)))
    )
    one = Estimate(20.0, 18.0, 22.0, "", tuple(a))
    other = Estimate(20.0 + gap, 18.0 + gap, 22.0 + gap, "", tuple(b))
    got = paired(one, other)
    assert got is not None and got.low is not None and got.high is not None
    assert (got.value, got.low, got.high) == pytest.approx((oracle.value, oracle.low, oracle.high))
    assert distinguishable(one, other) is oracle.distinguishable is (gap == 0.5)
    assert not distinguishable(Estimate(20.0, 18.0, 22.0), other)  # without replicates: the intervals overlap


def test_a_paired_interval_decides_where_replicates_are_stored(
    fake_store: FakeStore, edit: Callable[..., None]
) -> None:
    study(fake_store, (20.0, 20.5))
    noise = np.random.default_rng(0).standard_normal(100)
    for i in range(2):
        change = {"replicates": (20.0 + 0.5 * i + noise).tolist(), "method": "Fréchet distance of 64 features"}
        edit(
            fake_store.root / f"scores/shapes-r{i}5c/scores.json", lambda raw, c=change: raw["scores"]["fid"].update(c)
        )
    table = samples_table(read_runs([fake_store.root / "runs" / f"run-id{i}" for i in range(2)]))
    assert table is not None and table.rows[0].cells[0].best
    assert any("paired 95 % interval" in text and "Bold" in text for text in (note.text for note in table.notes))


def test_higher_is_better_where_it_is(fake_store: FakeStore) -> None:
    folders = [
        fake_store.run([fake_store.autoencoder(f"ae{i}", psnr=psnr)], f"id{i}", f"run{i}")
        for i, psnr in enumerate((24.0, 28.0))
    ]
    table = first_stage_table(read_runs(folders))
    assert table is not None and table.metrics[0].key == "psnr"
    assert [row.cells[0].best for row in table.rows] == [False, True]


def test_runs_that_share_an_autoencoder_are_one_row(fake_store: FakeStore) -> None:
    table = first_stage_table(study(fake_store, (20.0, 30.0)))
    assert table is not None and [row.label for row in table.rows] == ["run0, run1"]


def test_unfinished_scores_show_their_state(fake_store: FakeStore) -> None:
    waiting = fake_store.entry("scores", "ff", fake_store.root / "scores/none", "FID", None, state="will run")
    table = samples_table(read_runs([fake_store.run([*fake_store.snapshot("a", 2000, 90.0), waiting])]))
    assert table is not None and [row.cells[0].text for row in table.rows] == ["90.0", "will run"]


def test_markdown_is_a_valid_table_whatever_the_names(fake_store: FakeStore) -> None:
    stages = fake_store.snapshot("a", 2000, 90.0)
    table = samples_table(read_runs([fake_store.run(stages, name="a|b `c`\n<script>")]))
    assert table is not None
    lines = [line for line in markdown(shown_table(table)) if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert set(cells) == {3 + len(table.metrics) + 1}
    assert r"a\|b \`c\` \<script\>" in lines[2]
    assert r"90.0 \[87.2, 92.8\]" in lines[2]


def test_csv_gives_every_number_back_in_full(fake_store: FakeStore) -> None:
    runs = study(fake_store, (20.0, 30.0), steps=20)
    tables = [table for table in (samples_table(runs), first_stage_table(runs)) if table is not None]
    lines = list(csv.DictReader(io.StringIO(csv_text(csv_rows(tables)))))
    assert len(lines) == sum(len(table.rows) for table in tables)
    rows = [(table, row) for table in tables for row in table.rows]
    for line, (table, row) in zip(lines, rows, strict=True):
        assert line["run"] == row.label and row.source is not None and line["folder"] == row.source.place
        for metric, cell in zip(table.metrics, row.cells, strict=True):
            assert cell.score is not None
            assert float(line[metric.key]) == cell.score.value
            for end, bound in (("low", cell.score.low), ("high", cell.score.high)):
                assert (
                    (line[f"{metric.key}_{end}"] == "")
                    if bound is None
                    else float(line[f"{metric.key}_{end}"]) == bound
                )
    assert lines[1]["card_differs_in"] == "steps: 20 (others: 50)"
