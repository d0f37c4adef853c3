"""The page of a study of first stages, from a store written by hand."""

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeStore, little_pictures, write_json

from ldmlab.errors import DataError
from ldmlab.metrics import latents
from ldmlab.metrics.intervals import mean_score
from ldmlab.reports import first_stage_cells, first_stage_figures, first_stages
from ldmlab.reports.collect import read_runs
from ldmlab.reports.drawing import DrawnFigure
from ldmlab.reports.figures import data_csv
from ldmlab.reports.first_stage_cells import read_cells
from ldmlab.reports.paper import table_8
from ldmlab.reports.publish import find_runs, make_report, missing_cells

N, SIDE = 60, 32
CARD = {"images": N, "split": "val", "data": "shapes-90ca4d67c6dd", "resolution": SIDE, "extractor": "shapes"}


def cell(store: FakeStore, kind: str, f: int, psnr: float, rfid: float, id_: str = "", **changes: Any) -> Path:
    """One first stage of the study. Its images' PSNR spread by 3 dB, alike in every cell, as real images' do."""
    id_ = id_ or f"{kind.lower()}{f}aa"
    folder = store.root / "reconstructions" / f"{kind.lower()}_f{f}-{id_}"
    rng = np.random.default_rng(f)
    psnr_N = psnr + 3 * np.random.default_rng(0).standard_normal(N) + 0.3 * rng.standard_normal(N)
    codes, side, c = (None if kind == "KL" else 256), SIDE // f, 3
    scores: dict[str, Any] = {
        "psnr": mean_score(psnr_N, 200, 0, "dB").to_dict(),
        "rfid": mean_score(rfid + 0.1 * rng.standard_normal(N), 200, 0, "distance").to_dict(),
        "bits_per_pixel": 8 / f**2, "latent_mean": 0.0, "latent_std": 1.0,
        "card": CARD | changes.get("card", {}), "warnings": [],
    }  # fmt: skip
    if codes:
        scores["entropy_bits_per_pixel"] = mean_score(np.full(N, 6 / f**2), 200, 0, "entropy").to_dict()
    write_json(folder / "scores.json", scores)
    facts = {
        "f": f, "c": c, "regulariser": kind, "codes": codes, "resolution": SIDE, "latent_shape": [c, side, side],
        "parameters": {"encoder": 1_000_000, "decoder": 2_000_000, "regulariser": 768 if codes else 0, "other": 0},
        "compression_elements": f**2, "latent_images": 16, "training_images": 4000,
        "speed": {"encode": 123.4, "decode": 56.7, "batch": 8, "batches": 2, "warm_up": True, "device": "cpu",
                  "threads": 1, "precision": "fp32", "load": 0.5},
        "is_of_originals": {"value": 3.5, "low": 3.4, "high": 3.6},
    }  # fmt: skip
    write_json(folder / "facts.json", facts)
    z = rng.standard_normal((16, c, side, side))
    found, histogram, spectrum = latents.pca(z), latents.histograms(z), latents.spectrum(z)
    noised = 20.0 - 8 * np.array(latents.NOISE_LEVELS)[:, None] + rng.standard_normal(12)
    np.savez(
        folder / "latent.npz", edges=histogram.edges_J, density=histogram.density_CJ, mean=z.mean((0, 2, 3)),
        std=z.std((0, 2, 3)), correlation=latents.correlation(z), cycles=spectrum.cycles_F, power=spectrum.power_CF,
        image_cycles=np.arange(17), image_power=1 / (1 + np.arange(17.0)), pca_mean=found.mean_C,
        pca_basis=found.basis_CP, pca_share=found.share_P, pca_maps=latents.pca_rgb(z[:8], found, np.ones(3)),
        noise_levels=np.array(latents.NOISE_LEVELS), noised_additive=noised, noised_preserving=noised - 1,
    )  # fmt: skip
    original = little_pictures(8, SIDE, seed=3)
    np.savez(
        folder / "shown.npz", original=original, reconstruction=np.clip(original.astype(int) + f, 0, 255).astype("u1")
    )
    autoencoder = store.root / "autoencoder" / folder.name
    autoencoder.mkdir(parents=True)
    entries = [
        store.entry("autoencoder", id_, autoencoder, f"{kind} f={f}", 61.0),
        store.entry("reconstructions", id_, folder, f"{N} val images", 3.0),
    ]
    return store.run(
        entries, id_, f"shapes-{kind.lower()}_f{f}", studies=changes.get("studies", ["first_stages"]),
        config={"ae": {"network": {"f": f}, "regulariser": {"_target_": kind}}},
    )  # fmt: skip


@pytest.fixture
def study(fake_store: FakeStore) -> list[Path]:
    return [
        cell(fake_store, "VQ", 2, 28.0, 1.0), cell(fake_store, "VQ", 4, 25.0, 2.0), cell(fake_store, "KL", 2, 30.0, 0.5),
        cell(fake_store, "KL", 4, 27.0, 1.5), cell(fake_store, "KL", 8, 26.98, 3.0),
    ]  # fmt: skip


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        self.targets += [v for k, v in attrs if k in ("href", "src", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_has_every_cell_and_every_row_of_the_paper(study: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page"
    failed = [("ae=vq_f8_matched", "exit code 1, see job-2.log")]
    html = first_stages.report(study, out, "first_stages", failed).read_text()
    page = Links()
    page.feed(html)
    for label in ("KL f=2", "KL f=4", "KL f=8", "VQ f=2", "VQ f=4"):
        assert page.text.count(label) >= 4
    paper = table_8()
    assert len(paper.rows) == 19
    for row in paper.rows:
        assert row.printed["psnr"] in page.text and row.printed["rfid"] in page.text
    assert paper.why_not_comparable in page.text and "Not comparable" in page.text
    assert "ae=vq_f8_matched" in page.text and "exit code 1" in page.text
    assert all(t.startswith(("#", "data:")) or (out / t).is_file() for t in page.targets)  # from disk, no network
    assert {t[1:] for t in page.targets if t.startswith("#")} <= page.ids
    report = (out / "report.md").read_text()
    assert all(f"| {label} |" in report for label in ("KL f=2", "VQ f=4")) and "not comparable" in report
    assert "linear" not in report
    for name in ("psnr-over-f", "rfid-over-f", "psnr-over-elements", "psnr-over-bits", "noised-additive"):
        assert all((out / "figures" / f"{name}.{end}").is_file() for end in ("svg", "png", "csv"))
    rows = list(csv.DictReader(io.StringIO((out / "cells.csv").read_text())))
    assert [r["cell"] for r in rows] == ["KL f=2", "KL f=4", "KL f=8", "VQ f=2", "VQ f=4"]
    assert float(rows[0]["compression_bits"]) == 24 / 2 and float(rows[3]["encode_images_per_second"]) == 123.4


def test_the_linear_first_stage_stands_beside_psnr_where_the_store_has_it(study: list[Path], tmp_path: Path) -> None:
    """(Where it has none: above.)"""
    (facts,) = study[2].parent.parent.glob("reconstructions/kl_f2-*/facts.json")
    write_json(facts, json.loads(facts.read_text()) | {"linear_psnr": 27.5, "gain_over_linear": 2.5})
    first_stages.report(study[2:4], tmp_path / "after", "first_stages", [])
    rows = [line.split(" | ") for line in (tmp_path / "after/report.md").read_text().splitlines() if " | " in line]
    head = next(row for row in rows if row[0] == "| first stage")
    at = head.index("PSNR (dB) ↑")
    assert head[at + 1 : at + 3] == ["linear PSNR (dB)", "gain over linear (dB)"]
    found = {row[0]: row[at + 1 : at + 3] for row in rows[rows.index(head) + 2 :][:2]}
    assert found["| KL f=2"] == ["27.5", "2.50"] and found["| KL f=4"] == ["–", "–"]
    records = csv.DictReader(io.StringIO((tmp_path / "after/table.csv").read_text()))
    record = next(each for each in records if each["run"] == "KL f=2")
    assert record["linear_psnr"] == "27.5" and record["gain_over_linear"] == "2.5"


def test_equal_runs_give_equal_bytes(study: list[Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        first_stages.report(study[2:3], tmp_path / name, "first_stages", [])
    one = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert one == {p: (tmp_path / "two" / p).read_bytes() for p in one} and len(one) > 20


def test_steps_and_ties_come_from_paired_images(study: list[Path]) -> None:
    cells = read_cells(read_runs(study))
    assert first_stage_cells.verdicts(cells) == [
        "KL: PSNR falls at f 2 → 4; is not distinguishable at f 4 → 8.",
        "KL: rFID rises with f at every step, f = 2 … 8.",
        "VQ: PSNR falls with f at every step, f = 2 … 4.",
        "VQ: rFID rises with f at every step, f = 2 … 4.",
    ]
    at_2 = first_stage_cells.at_equal_f(cells)[0]
    assert at_2.title == "KL f=2 → VQ f=2"
    step = at_2.differences["psnr"].score
    assert step.low is not None and step.high is not None
    assert step.low < -1.7 and step.high - step.low < 0.4  # unpaired, the images' 3 dB would make it four times as wide
    ties = {m.key: [(a.label, b.label) for a, b in pairs] for m, pairs in first_stage_cells.all_indistinct(cells)}
    assert ties == {"psnr": [("KL f=4", "KL f=8")]}


def test_unequal_protocols_are_marked_and_not_joined(study: list[Path], fake_store: FakeStore, tmp_path: Path) -> None:
    other = cell(fake_store, "KL", 16, 22.0, 4.0, card={"data": "flowers-1"})
    cells = read_cells(read_runs([*study, other]))
    figure = first_stage_figures.over(cells, "psnr", first_stage_figures.F_AXIS)
    assert figure is not None
    drawn = list(csv.DictReader(io.StringIO(data_csv(figure))))
    assert [r["other_protocol"] for r in drawn if r["run"] == "KL"] == ["no", "no", "no", "yes"]
    assert not any(16 in (pair.a.f, pair.b.f) for pair in first_stage_cells.along_f(cells))
    html = first_stages.report([*study[2:4], other], tmp_path / "page", "first_stages", []).read_text()
    assert "data: flowers-1 (others: shapes-90ca4d67c6dd)" in html


@pytest.mark.parametrize("f", [16, 32])
def test_a_latent_of_two_or_one_positions_can_be_drawn(f: int, fake_store: FakeStore) -> None:
    (found,) = read_cells(read_runs([cell(fake_store, "KL", f, 20.0, 9.0)]))
    histogram, spectrum = first_stage_figures.latent_figures(found)
    assert len(histogram.series) == 3 and [s.name for s in spectrum.series] == ["images", "latent"][: 3 - f // 16]
    maps = first_stages.latent_maps(found)
    assert DrawnFigure(spectrum).light.count("<svg") == 1 and maps.cell * maps.columns > 700


def test_labels_tell_cells_apart(study: list[Path], fake_store: FakeStore) -> None:
    again = cell(fake_store, "KL", 2, 29.0, 0.6, id_="bb")
    labels = [c.label for c in read_cells(read_runs([*study, again]))]
    assert len(set(labels)) == 6 and "KL f=4" in labels


def test_codebooks_have_a_second_line_over_bits(study: list[Path]) -> None:
    figure = first_stage_figures.over(read_cells(read_runs(study)), "psnr", first_stage_figures.BITS_AXIS)
    assert figure is not None
    assert [(s.name, s.dashed) for s in figure.series] == [("KL", False), ("VQ", False), ("VQ entropy", True)]
    assert figure.series[1].images == [0.5, 2.0] and figure.series[2].images == [6 / 16, 6 / 4]


def test_crops_lie_where_the_detail_is() -> None:
    images = np.full((3, 64, 64, 3), 100, np.uint8)
    images[1, 40:48, 8:16] = np.indices((8, 8)).sum(0)[..., None] % 2 * 155 + 100  # a checkerboard
    (crop,) = first_stages.find_crops(images, n=1)
    assert crop.image == 1 and crop.side == 16
    assert crop.y <= 40 and crop.y + 16 >= 48 and crop.x <= 8 and crop.x + 16 >= 16
    assert first_stages.cut(images, [crop]).std() > 0


def test_error_map_is_four_times_the_difference() -> None:
    a, b = np.full((1, 2, 2, 3), 10, np.uint8), np.full((1, 2, 2, 3), 13, np.uint8)
    assert (first_stages.error_map(a, b) == 12).all() and (first_stages.error_map(b, a) == 12).all()


def test_a_study_is_the_runs_that_its_sweep_made(study: list[Path], fake_store: FakeStore, tmp_path: Path) -> None:
    stranger = cell(fake_store, "KL", 32, 20.0, 9.0, studies=[])
    both = cell(fake_store, "VQ", 32, 20.0, 9.0, studies=["compression", "first_stages"])
    assert set(find_runs(fake_store.root, None, "first_stages")) == {*study, both}
    assert find_runs(fake_store.root, None, "compression") == [both]
    assert find_runs(fake_store.root, "run-kl2*", "first_stages") == [study[2]]
    assert stranger in find_runs(fake_store.root, None)
    with pytest.raises(
        DataError, match=r"study=nothing: .*Studies there: compression, first_stages.*-m sweeps=nothing"
    ):
        find_runs(fake_store.root, None, "nothing")
    jobs = [
        {"words": ["ae=a"], "exit_code": 0, "log": "job-0.log"},
        {"words": ["ae=b"], "exit_code": 9, "log": "job-1.log"},
    ]
    write_json(fake_store.root / "sweeps/first_stages/jobs.json", {"study": "first_stages", "jobs": jobs})
    ((words, why),) = missing_cells(fake_store.root, "first_stages")
    assert words == "ae=b" and "exit code 9" in why and "job-1.log" in why
    page = make_report(study[2:3], tmp_path / "out", fake_store.root, "first_stages")
    assert "exit code 9" in page.read_text() and (tmp_path / "out" / "cells.csv").is_file()


def test_missing_and_damaged_files_are_named(study: list[Path], fake_store: FakeStore, tmp_path: Path) -> None:
    file = next(fake_store.root.glob("reconstructions/kl_f4*/latent.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"latent\.npz is damaged"):
        first_stages.report(study, tmp_path / "page", "first_stages", [])
    next(fake_store.root.glob("reconstructions/kl_f4*/facts.json")).unlink()
    with pytest.raises(DataError, match=r"facts\.json: no such file"):
        first_stages.report(study, tmp_path / "page", "first_stages", [])
    assert not (tmp_path / "page").exists()


def test_an_unfinished_cell_is_named(study: list[Path], edit: Any, tmp_path: Path) -> None:
    edit(study[0] / "run.json", lambda run: run["stages"][1].update(state="unfinished"))
    html = first_stages.report(study[:2], tmp_path / "page", "first_stages", []).read_text()
    assert "Not finished" in html and "unfinished" in html and "1 first stage<" in html
    for folder in study:
        edit(folder / "run.json", lambda run: run["stages"][1].update(state="unfinished"))
    with pytest.raises(DataError, match="no first stage is finished"):
        first_stages.report(study, tmp_path / "other", "first_stages", [])


def test_the_paper_s_numbers_are_the_printed_ones() -> None:
    paper = table_8()
    (kl_2,) = [row for row in paper.rows if row.regulariser == "KL" and row.f == 2]
    assert kl_2.printed["psnr"] == "32.47 ± 4.19" and kl_2.values["rfid"] == 0.086 and kl_2.codes is None
    (small,) = [row for row in paper.rows if row.f == 4 and row.codes == 256]
    assert small.bits_per_pixel == 0.5 and small.printed["psnr"] == "26.43 ± 4.22"
    assert [row.label for row in paper.rows if "attention" in row.label] == ["VQ f=4, no attention"]
    assert json.loads(json.dumps([row.values for row in paper.rows]))[-1]["ris"] is None


def test_a_linear_first_stage_is_called_so() -> None:
    kind = first_stage_cells.kind_of
    assert kind({"regulariser": "NoRegulariser", "linear": True}) == "PCA"
    assert kind({"regulariser": "VQ", "linear": True}) == "PCA + VQ"
    assert kind({"regulariser": "EMAVQ", "linear": False}) == "VQ-EMA"
    assert kind({"regulariser": "KL"}) == "KL"  # a store older than the word
    assert kind({"regulariser": "NoRegulariser", "linear": False}) == "none"


def test_codecs_are_drawn_beside_rate_and_psnr_alone(study: list[Path]) -> None:
    points = [
        {"setting": 10, "bits_per_pixel": 0.5, "psnr": 20.0},
        {"setting": 50, "bits_per_pixel": 2.0, "psnr": 30.0},
    ]
    nothing = {
        "setting": 1,
        "bits_per_pixel": 0.0,
        "psnr": 9.0,
    }  # a flat picture's scan: no place on a logarithmic axis
    folders = sorted(study[2].parent.parent.glob("reconstructions/*"))
    for folder in folders:
        write_json(folder / "codecs.json", {"JPEG": points, "WebP": [nothing, points[0]]})
    cells = read_cells(read_runs(study))
    figure = first_stage_figures.over(cells, "psnr", first_stage_figures.BITS_AXIS)
    assert figure is not None and "only lossless ones compare" in figure.note
    jpeg, webp = figure.series[-2:]
    assert (jpeg.name, jpeg.images, jpeg.values) == ("JPEG", [0.5, 2.0], [20.0, 30.0])
    assert webp.values == [20.0] and "JPEG" in data_csv(figure)
    for key, axis in (("psnr", first_stage_figures.F_AXIS), ("rfid", first_stage_figures.BITS_AXIS)):
        other = first_stage_figures.over(cells, key, axis)
        assert other is not None and "JPEG" not in [s.name for s in other.series] and "JPEG" not in other.note
    write_json(folders[0] / "codecs.json", {"JPEG": points[:1]})  # other images
    apart = first_stage_figures.over(read_cells(read_runs(study)), "psnr", first_stage_figures.BITS_AXIS)
    assert apart is not None and "JPEG" not in [s.name for s in apart.series]
