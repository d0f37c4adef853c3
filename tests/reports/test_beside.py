"""A task's scores beside those of the null condition and of trivial answers: which are apart, as lines and as a table."""

from pathlib import Path
from typing import Any

from ldmlab.reports import numbers
from ldmlab.reports.beside import compared, lines, sections
from ldmlab.reports.records import Estimate, Run, StageRecord


def record(**scores: tuple[float, float, float]) -> StageRecord:
    names = {"null": "null condition", "bicubic": "bicubic", "real": "real images"}
    declared: dict[str, dict[str, Any]] = {
        "sr_psnr": {"label": "PSNR", "unit": "dB", "better": "higher"}, "sr_fid": {"label": "FID", "better": "lower"},
        "kid": {"label": "KID", "unit": "×10³", "better": "lower"},
    }  # fmt: skip
    for measure in ("sr_psnr", "sr_fid", "kid"):
        declared |= {
            f"{measure}_{row}": declared[measure] | {"beside": said, "measure": measure} for row, said in names.items()
        }
    estimates = {name: Estimate(*values) for name, values in scores.items()}
    return StageRecord(
        "scores", "1", Path(), "scores/x-1", "done", "", 1.0, {}, "", lambda *_: None, scores=estimates, declared=declared,  # type: ignore[arg-type, return-value]
    )  # fmt: skip


SCORES = record(
    kid=(0.01, 0.009, 0.011), sr_psnr=(20.0, 19.0, 21.0), sr_psnr_null=(9.0, 8.0, 10.0), sr_psnr_bicubic=(24.0, 23.0, 25.0),
    sr_psnr_real=(40.0, 39.0, 41.0), sr_fid=(5.0, 4.0, 6.0), sr_fid_null=(6.5, 5.5, 7.5), sr_fid_bicubic=(30.0, 28.0, 32.0),
)  # fmt: skip


def test_better_means_outside_both_intervals() -> None:
    psnr, fid = compared(SCORES)
    assert psnr.apart() == (["null condition"], ["bicubic"])  # real images are a ceiling, not a rival
    assert fid.apart() == (["bicubic"], ["null condition"])  # lower, but the intervals overlap
    assert compared(record(kid=(0.01, 0.009, 0.011))) == []


def test_tables_of_scores_have_the_samples_alone() -> None:
    assert [metric.key for metric in numbers.metrics_of([SCORES])] == ["kid", "sr_psnr", "sr_fid"]


def test_each_measure_is_a_line_and_a_column() -> None:
    with_kid = record(kid=(0.01, 0.009, 0.011), kid_bicubic=(0.02, 0.019, 0.021))
    assert lines(with_kid) == [
        "KID 0.0100 [0.0090, 0.0110]   bicubic 0.0200 [0.0190, 0.0210]"
    ]  # as stored, like the line above it
    first, second = lines(SCORES)
    assert first.startswith("PSNR 20.0 [19.0, 21.0] dB   null condition 9.00 [8.00, 10.00]   bicubic 24.0")
    assert second.startswith("FID 5.00 [4.00, 6.00]   null condition 6.50")
    run = Run("r", "", "", "", "", {}, {}, (SCORES,))
    (section,) = sections([run])
    table, verdict = section.blocks
    assert table.heads == ["", "PSNR (dB) ↑", "FID ↓"]  # type: ignore[union-attr]
    texts = [[entry.text for entry in row] for row in table.rows]  # type: ignore[union-attr]
    assert [row[0] for row in texts] == ["samples", "null condition", "bicubic", "real images"]
    assert texts[3] == ["real images", "40.0", "–"]
    assert "FID: samples are better than bicubic outside both intervals, not than null condition." in verdict.text  # type: ignore[union-attr]
    assert sections([Run("r", "", "", "", "", {}, {}, ())]) == []
