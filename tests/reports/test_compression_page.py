"""The page of a study of f, from a store written by hand: what it says follows from the cells."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeStore, write_json
from reports.test_study import CONFIG, cell

from ldmlab.reports import compression
from ldmlab.reports.collect import read_runs
from ldmlab.reports.compression_cells import table_of
from ldmlab.reports.drawing import DrawnFigure
from ldmlab.reports.publish import advice, make_report
from ldmlab.studies.claims import judge

FIDS = {"identity": 30.0, "kl_f2_quick": 24.0, "kl_f4_quick": 15.0, "kl_f8_quick": 15.8, "kl_f16_quick": 60.0}


def f_of(ae: str) -> int:
    return 1 if ae == "identity" else int(ae.split("_")[1][1:])


def trained(
    store: FakeStore, ae: str, fid: float, ldm_seed: int = 0, ae_seed: int = 0, eval_seed: int = 0, **data: Any
) -> Path:
    """One run with the facts of its first stage beside it. The images' part of the FID is that of `cell`."""
    id_ = f"{ae}-{ae_seed}{ldm_seed}{eval_seed}{''.join(map(str, data.values()))}"
    config = CONFIG | {
        "ae": {"seed": ae_seed, "fit": None if ae == "identity" else {"images": 8}}, "data": data,
        "ldm": {"seed": ldm_seed, "fit": {"lr": 1e-3, "images": 4000, "batch_size": 64}},
    }  # fmt: skip
    folder = cell(store, id_, fid, f"d{id_}", {"ae": ae}, config, seed=eval_seed)
    facts = store.root / "reconstructions" / f"{ae}-r"
    kind = "identity" if ae == "identity" else "VQ" if ae.startswith("vq") else "KL"
    write_json(facts / "facts.json", {"f": f_of(ae), "c": 3, "regulariser": kind, "linear": False})
    write_json(facts / "scores.json", {"psnr": {"value": 20.0, "low": 19.0, "high": 21.0}})
    raw = json.loads((folder / "run.json").read_text())
    raw["stages"].insert(0, store.entry("reconstructions", "r", facts, "PSNR", 1.0))
    write_json(folder / "run.json", raw)
    return folder


def study(store: FakeStore, denoisers: int = 2) -> list[Path]:
    """Two denoisers of an arm differ by 6 % in FID."""
    return [trained(store, ae, fid * (0.97, 1.03)[d], d) for ae, fid in FIDS.items() for d in range(denoisers)]


def test_the_page_advises_judges_and_draws_the_u(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = study(fake_store)
    page = make_report(folders, tmp_path / "page", fake_store.root, "compression")
    text, html = (page.parent / "report.md").read_text(), page.read_text()
    said = " ".join(text.split()).replace("\\", "")
    assert "take f = 4; f = 8 cannot be told from it; f = 1, f = 2 and f = 16 are ruled out" in said
    assert "times the denoiser seeds would tell f = 4 from f = 8, if their difference stays as it is, about" in said
    assert "One seed of each first stage" in said
    assert "| small f" not in said and "supported" in said and "undecided here" in said
    assert "the cells are not scored at half" in said and "no finished cell with a vq first stage" in said
    assert "| 8 | 68 (1.24 ×) | 31 (1.00 ×) |" in said and "fid-over-f" in html
    rows = list(csv.DictReader(io.StringIO((page.parent / "cells.csv").read_text())))
    assert len(rows) == 10 and {row["f"] for row in rows} == {"1", "2", "4", "8", "16"}
    assert " ".join(advice(folders)[0].split()) in said


def test_the_u_has_the_interval_of_images_and_seeds_together(fake_store: FakeStore) -> None:
    table = table_of(read_runs(study(fake_store)))
    figure = compression.u_figure(table)
    assert figure is not None and DrawnFigure(figure).light
    (line,) = figure.series
    assert line.images == [1, 2, 4, 8, 16] and line.values[2] == pytest.approx(15.0, rel=0.1)
    nested = table.nested({"last": 1.0})
    assert nested is not None and nested.df_K == (0, 5, 0)
    for arm, low, high in zip(table.curve, line.low, line.high, strict=True):
        w_N = nested.weights({arm.name: 1.0})
        images = float(np.sqrt(w_N @ nested.covariance_NN @ w_N))
        assert np.log(high / low) > 1.1 * 2 * 1.96 * images


def test_one_seed_says_undecided(fake_store: FakeStore) -> None:
    folders = study(fake_store, 1)
    assert "undecided" in advice(folders)[0] and "seeds.denoiser=2" in advice(folders)[0]
    assert {each.judgement for each in judge(table_of(read_runs(folders)), "compression")} == {"undecided here"}


def test_sampling_seeds_are_cells_of_one_protocol(fake_store: FakeStore) -> None:
    folders = [
        trained(fake_store, ae, 20.0 + d + s, d, 0, s)
        for ae in ("identity", "kl_f4_quick")
        for d in (0, 1)
        for s in (0, 1)
    ]
    table = table_of(read_runs(folders))
    nested = table.nested({"last": 1.0})
    assert len(table.cells) == 8 and nested is not None and nested.df_K == (0, 2, 4)
    assert [c.level for c in nested.components if c.variance is None] == ["first stage"]


def test_pictures_of_two_kinds_are_judged_apart(fake_store: FakeStore) -> None:
    rng = np.random.default_rng(1)
    truth = {(1, "kl_f2_quick"): 20.0, (1, "kl_f4_quick"): 15.0, (1, "kl_f8_quick"): 10.0,
             (4, "kl_f2_quick"): 20.0, (4, "kl_f4_quick"): 30.0, (4, "kl_f8_quick"): 45.0}  # fmt: skip
    folders = [
        trained(fake_store, ae, fid * float(np.exp(0.03 * rng.standard_normal())), d, objects=n)
        for (n, ae), fid in truth.items()
        for d in (0, 1)
    ]
    lines = advice(folders)
    assert lines[0].startswith("objects = 1: for these pictures") and "take f = 8" in lines[0]
    assert lines[1].startswith("objects = 4: ") and "take f = 2" in lines[1]
    table = table_of(read_runs(folders))
    assert [each.judgement for each in judge(table, "complexity")] == ["supported"]
    figure = compression.u_figure(table)
    assert figure is not None and [line.split for line in figure.series] == ["objects = 1", "objects = 4"]


def test_a_study_that_does_not_vary_f_has_nothing_of_it(fake_store: FakeStore) -> None:
    folders = [trained(fake_store, "kl_f4_quick", 10.0, d) for d in (0, 1)]
    assert advice(folders) == [] and compression.blocks(table_of(read_runs(folders)), "some") == ([], [])


def test_cells_of_another_protocol_are_left_out_and_named(fake_store: FakeStore) -> None:
    folders = study(fake_store)
    assert not any("another protocol" in line for line in advice(folders))
    folders.append(cell(fake_store, "other", 1.0, "dother", {"ae": "kl_f4_quick"}, CONFIG, extractor_hash="f" * 12))
    (said,) = [line for line in advice(folders) if "another protocol" in line]
    assert said.startswith("1 more of this study's cells are scored by another protocol") and "runs=" in said
    assert advice(folders)[0] == advice(folders[:-1])[0]
