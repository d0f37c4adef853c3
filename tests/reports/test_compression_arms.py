"""Studies in which something else than f is varied: what it is called, which lines are drawn, which arms are compared."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeStore, write_json
from reports.test_compression_page import trained

from ldmlab.reports import compression, compression_page
from ldmlab.reports.collect import read_runs
from ldmlab.reports.compression_cells import TrainingWork, table_of
from ldmlab.reports.publish import advice, make_report
from ldmlab.reports.study_cells import owners, read_study
from ldmlab.studies.claims import judge

SCHEDULES = {
    "cosine": {"_target_": "ldmlab.diffusion.schedules.Cosine", "T": 1000},
    "cosine_shifted": {"_target_": "ldmlab.diffusion.rescaled.Shifted", "base_size": 16, "schedule": {"T": 1000}},
}


def changed(folder: Path, choices: dict[str, str], **config: Any) -> Path:
    raw = json.loads((folder / "run.json").read_text())
    raw["choices"] |= choices
    raw["config"] |= config
    write_json(folder / "run.json", raw)
    return folder


def schedules(store: FakeStore) -> list[Path]:
    """Two schedules at f = 1 and 4, two denoisers each: the shifted one is a third better at f = 1."""
    fids = {("identity", "cosine"): (58.8, 61.2), ("identity", "cosine_shifted"): (39.2, 40.8),
            ("kl_f4_quick", "cosine"): (19.6, 20.4), ("kl_f4_quick", "cosine_shifted"): (20.3, 20.1)}  # fmt: skip
    return [
        changed(
            trained(store, ae, fid[seed], seed, note=schedule),
            {"objective": "v_cosine", "objective/schedule": schedule},
            objective={"schedule": SCHEDULES[schedule]}, data={},
        )
        for (ae, schedule), fid in fids.items() for seed in range(2)
    ]  # fmt: skip


def test_a_choice_within_a_group_is_named_by_its_word(fake_store: FakeStore) -> None:
    study = read_study(read_runs(schedules(fake_store)))
    assert study.knobs == ("ae", "objective/schedule", "ldm.seed")
    assert {cell.label for cell in study.cells} == {
        f"{ae} {schedule} seed={seed}"
        for ae in ("identity", "kl_f4_quick")
        for schedule in SCHEDULES
        for seed in (0, 1)
    }


def test_an_option_follows_from_the_choices_of_all_groups_around_it() -> None:
    known = {"ae", "ae/network", "objective"}
    assert owners("ae.network.width", known) == ("ae", "ae/network")
    assert owners("ae/network", known) == ("ae",)
    assert owners("objective.schedule.T", known) == ("objective",)
    assert owners("ae", known) == owners("seed", known) == owners("guidance", known) == ()


def test_treatments_have_a_line_each_and_are_compared_at_each_f(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = schedules(fake_store)
    table = table_of(read_runs(folders))
    figure = compression.u_figure(table)
    assert figure is not None and [line.split for line in figure.series] == ["cosine", "cosine_shifted"]
    said = advice(folders)
    assert said[0].startswith("cosine: for these pictures") and said[1].startswith("cosine_shifted: for these pictures")
    assert "identity cosine_shifted beside identity cosine: lower, 0.667 [" in said[2]
    assert "kl_f4_quick cosine_shifted beside kl_f4_quick cosine: cannot be told apart, 1.01 [" in said[3]
    page = make_report(folders, tmp_path / "page", fake_store.root, "schedule")
    text = (page.parent / "report.md").read_text().replace("\\", "")
    assert "## Arms of one f" in text and text.count("| yes |") == 2 and "PIXELS" not in text
    assert text.startswith("# First stages and noise schedules on ")
    rows = (page.parent / "cells.csv").read_text().splitlines()
    assert "treatment" in rows[0] and sum("cosine_shifted" in row for row in rows) == 4


def test_arms_of_one_f_alone_are_compared_and_nothing_is_said_of_f(fake_store: FakeStore, tmp_path: Path) -> None:
    fids = {"kl_f4_quick": 20.0, "vq_f4_quick": 20.3}
    folders = [
        trained(fake_store, ae, fid * (0.995, 1.005)[seed], seed) for ae, fid in fids.items() for seed in range(2)
    ]
    table, _, sections = compression_page.sections(
        read_study(read_runs(folders)), read_runs(folders), TrainingWork(), "kl_or_vq"
    )
    assert not table.varies_f and len(table.cells) == 4
    assert [section.id for section in sections] == ["claims", "pairs", "components"]
    assert len(advice(folders)) == 1 and "vq_f4_quick beside kl_f4_quick: cannot be told apart" in advice(folders)[0]
    text = (make_report(folders, tmp_path / "page", fake_store.root, "kl_or_vq").parent / "report.md").read_text()
    assert "KL and VQ at equal f do not differ in FID by more than a tenth. | supported" in text
    assert "fid-over-f" not in text
    alone = table_of(read_runs(folders[::2]))
    assert not alone.cells  # one seed each: no interval says how another training would end


def test_cells_stand_by_rising_f_whichever_ended_first(fake_store: FakeStore, tmp_path: Path) -> None:
    order = ["kl_f8_quick", "identity", "vq_f4_quick", "kl_f2_quick"]
    folders = [trained(fake_store, ae, 20.0 + n, 0) for n, ae in enumerate(order)]
    page = make_report(folders, tmp_path / "page", fake_store.root, "compression")
    rows = (page.parent / "table.csv").read_text().splitlines()[1:]
    found = [next(ae for ae in order if ae in row) for row in rows]
    assert list(dict.fromkeys(found)) == ["identity", "kl_f2_quick", "kl_f8_quick", "vq_f4_quick"]


def rescored(folder: Path, store: FakeStore, **card: Any) -> Path:
    """Its scores have another card."""
    path = next(store.root.glob(f"scores/shapes-{folder.name.removeprefix('run-')}/scores.json"))
    raw = json.loads(path.read_text())
    write_json(path, raw | {"card": raw["card"] | card})
    return folder


def test_pictures_of_two_kinds_may_have_references_and_extractors_of_their_own(fake_store: FakeStore) -> None:
    fids = {1: {"kl_f2_quick": 20.0, "kl_f4_quick": 20.0, "kl_f8_quick": 20.0},
            4: {"kl_f2_quick": 20.0, "kl_f4_quick": 40.0, "kl_f8_quick": 80.0}}  # fmt: skip
    folders = [
        rescored(trained(fake_store, ae, fid * (0.99, 1.01)[seed], seed, objects=objects), fake_store,
                 extractor_hash=f"hash-{objects}", reference=f"reference-{objects}")
        for objects, of_f in fids.items() for ae, fid in of_f.items() for seed in range(2)
    ]  # fmt: skip
    table = table_of(read_runs(folders))
    assert len(table.cells) == 12 and table.left_out == 0 and table.own_scales
    (verdict,) = judge(table, "complexity")
    assert verdict.judgement == "supported" and verdict.interval is not None
    assert verdict.interval.value == pytest.approx(
        math.log(2), rel=0.1
    )  # twice as high an octave further, beside no rise
    figure = compression.u_figure(table)
    assert figure is not None and "not their heights" in figure.note
    assert [line.split for line in figure.series] == ["objects = 1", "objects = 4"]
    other = rescored(trained(fake_store, "kl_f16_quick", 20.0, 0, objects=4), fake_store, samples=50)
    more = table_of(read_runs([*folders, other]))
    assert more.left_out == 1 and more.cells == table.cells
