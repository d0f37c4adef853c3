from pathlib import Path

import numpy as np
import pytest
from conftest import FakeStore

from ldmlab.errors import DataError
from ldmlab.metrics.intervals import wilson
from ldmlab.reports.agreement import by_class
from ldmlab.reports.records import SampleSet
from ldmlab.reports.run import report


def test_rows_are_shares_of_classes_the_least_first_with_what_they_pass_for() -> None:
    labels = [0] * 4 + [1] * 2 + [2] * 4
    answers = np.array([0, 0, 0, 0, 2, 1, 1, 0, 1, 2])  # disc 4 of 4, star 1 of 2, cross 1 of 4
    rows = by_class(answers, SampleSet(np.zeros((10, 1, 1, 3)), labels, [], ["disc", "star", "cross"]))
    said = [[entry.text for entry in row] for row in rows]
    assert [row[:2] for row in said] == [["cross", "4"], ["star", "2"], ["disc", "4"]]
    assert [row[3] for row in said] == ["star 2, disc 1", "cross 1", "–"]
    assert [float(row[2]) for row in said] == [25, 50, 100]
    low, high = (float(part) for part in rows[0][2].interval.strip("[]").split(","))
    assert (low, high) == pytest.approx([100 * bound for bound in wilson(1, 4)], abs=0.6)


def test_a_run_shows_them_where_its_features_are_kept(fake_store: FakeStore, tmp_path: Path) -> None:
    folder = fake_store.finished()
    assert "Label agreement by class" not in (report([folder], tmp_path / "a").parent / "report.md").read_text()
    features, logits = np.zeros((80, 2), np.float32), np.eye(10, dtype=np.float32)[(np.arange(80) * 3) % 10]
    kept = fake_store.root / "scores" / "shapes-a25c" / "features.npz"
    np.savez(kept, features=features, logits=logits)
    text = (report([folder], tmp_path / "b").parent / "report.md").read_text()
    part = text.split("## Label agreement by class")[1].split("\n## ")[0]
    assert "| circle | 8 | 100" in part and "| square | 8 | 0" in part and "star 8" in part
    kept.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"features\.npz"):
        report([folder], tmp_path / "c")
