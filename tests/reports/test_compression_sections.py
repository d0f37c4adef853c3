"""What the page of a study of f shows beside the U: curves over budgets, speed, sources of FID, ranks of latents, links; from a store
written by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeStore, score, write_json
from reports.test_compression_page import FIDS, f_of, trained
from reports.test_study import cell

from ldmlab.metrics.frechet import fid_score
from ldmlab.reports import compression_page, fid_sources, paper_figures, sampling_speed, training_curves
from ldmlab.reports.collect import read_runs
from ldmlab.reports.compression_cells import TrainingWork, read_table
from ldmlab.reports.publish import advice, make_report
from ldmlab.reports.study_cells import read_study

AES = list(FIDS)
DIAGNOSTICS = {"velocity": 0.1, "high_frequency": 0.2, "smoothness": 0.3, "neighbours": 0.4, "noise_psnr": 20.0}


def edit(folder: Path, change: Any) -> None:
    """Changes a run's record in place."""
    raw = json.loads((folder / "run.json").read_text())
    change(raw)
    write_json(folder / "run.json", raw)


def own_first_stage(store: FakeStore, folder: Path, ae: str, rfid: float = 1.0) -> None:
    """Gives a run stages of a first stage that is not the other runs'."""
    facts = store.root / "reconstructions" / f"{ae}-r"
    card = {"extractor_hash": "abcdefabcdef", "images": 40}
    known = json.loads((facts / "facts.json").read_text()) if (facts / "facts.json").is_file() else {}
    write_json(facts / "facts.json", known | {"codes": None, "resolution": 32, "latent_shape": [3, 4, 4],
                                               "linear_psnr": 18.5, "gain_over_linear": 1.5})  # fmt: skip
    write_json(facts / "scores.json", {"psnr": score(20.0, 1.0), "rfid": score(rfid, 0.1), "card": card})
    entries = [
        store.entry("autoencoder", f"a{ae}", facts, "KL", 1.0),
        store.entry("reconstructions", f"r{ae}", facts, "PSNR", 1.0),
    ]
    edit(folder, lambda raw: raw.update(stages=entries + [s for s in raw["stages"] if s["stage"] != "reconstructions"]))


def earlier(store: FakeStore, folder: Path, id_: str, fid: float, images: int = 2000) -> None:
    """A snapshot before the last, with time in the denoiser's log."""
    scores = store.root / "scores" / f"shapes-{id_}"
    last = next(store.root.glob(f"scores/shapes-{folder.name.removeprefix('run-')}/scores.json"))
    raw = json.loads(last.read_text())
    replicates = [fid + x - raw["scores"]["fid"]["value"] for x in raw["scores"]["fid"]["replicates"]]
    raw["scores"]["fid"] |= {"value": fid, "low": fid - 1, "high": fid + 1, "replicates": replicates}
    write_json(scores / "scores.json", raw | {"snapshot_images": images})

    def change(run: dict[str, Any]) -> None:
        run["stages"].append(store.entry("scores", id_, scores, "FID", 1.0, {"samples": f"{id_}s"}))
        denoiser = next(s for s in run["stages"] if s["stage"] == "denoiser")
        log = (folder / denoiser["folder"] / "metrics.jsonl").resolve()
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps(row | {"time": row["images"] / 100}) + "\n" for row in rows))

    edit(folder, change)


def timed(store: FakeStore, id_: str, sampler: str, seconds: tuple[float, float], images: int = 100) -> None:
    """The measurement on the card of a set of samples."""
    spent = {
        "images": images,
        "sampler_seconds": seconds[0],
        "decoder_seconds": seconds[1],
        "clock": "CPU seconds",
        "threads": 1,
    }
    write_json(
        store.root / "samples" / f"{sampler}-{id_}" / "card.json",
        {"sampling": spent, "machine": {"cpu": "a processor"}},
    )


def study(store: FakeStore) -> list[Path]:
    """Two denoisers of each f, scored twice along their training."""
    folders = []
    for n, (ae, fid) in enumerate(FIDS.items()):
        for d in range(2):
            folder = trained(store, ae, fid * (0.97, 1.03)[d], d)
            own_first_stage(store, folder, ae, rfid=float(n))
            earlier(store, folder, f"early-{ae}{d}", 2 * fid * (0.97, 1.03)[d])
            folders.append(folder)
    return folders


def gaussian(store: FakeStore, ae: str, fid: float) -> Path:
    config = {"ae": {"seed": 0}, "ldm": {"seed": 0, "fit": None}}
    nothing: dict[str, Any] = {"sampler": "closed_form", "steps": None, "eta": None, "weights": None, "grid": None}
    folder = cell(store, f"g-{ae}", fid, f"dg{ae}", {"ae": ae, "ldm": "gaussian"}, config, **nothing)
    own_first_stage(store, folder, ae, rfid=float(AES.index(ae)))
    (store.root / "denoiser" / f"net-dg{ae}" / "metrics.jsonl").unlink()
    write_json(store.root / "denoiser" / f"net-dg{ae}" / "gaussian.json", {})
    return folder


def of_other_steps(store: FakeStore, ae: str, fid: float, steps: int) -> Path:
    """Samples of the first denoiser of an arm in other numbers of steps."""
    first = json.loads((store.root / "runs" / f"run-{ae}-000" / "run.json").read_text())
    folder = cell(store, f"{ae}-s{steps}", fid, f"d{ae}-000", first["choices"], first["config"], steps=steps)
    own_first_stage(store, folder, ae, rfid=float(AES.index(ae)))
    return folder


WORK = TrainingWork(
    {f"d{ae}-0{d}0": (10, 1e9 * f_of(ae)) for ae in AES for d in (0, 1)},
    {f"d{ae}-0{d}0": 2e12 for ae in AES for d in (0, 1)},
)


def test_curves_over_images_operations_and_time(fake_store: FakeStore) -> None:
    table = read_table(read_study(read_runs(study(fake_store))), WORK)
    figures = {figure.name: figure for figure in training_curves.figures({"fid": table})}
    assert set(figures) == {f"fid-over-{x}" for x in ("images", "flops", "all-flops", "seconds")}
    four = {name: figure.series[2] for name, figure in figures.items()}
    assert all(line.split == "f = 4" for line in four.values())
    assert four["fid-over-images"].images == [2000, 4000]
    end = 4e9 * 4000 / 1e12  # TFLOP of 4 GFLOP an image
    assert four["fid-over-flops"].images == pytest.approx([end / 2, end], rel=0.02)  # whole batches are a little more
    assert four["fid-over-all-flops"].images == pytest.approx([2 + end / 2, 2 + end], rel=0.02)
    assert four["fid-over-seconds"].images == [20, 40]
    line = four["fid-over-images"]
    assert line.values[1] == pytest.approx(15, rel=0.1) and line.values[0] == pytest.approx(30, rel=0.1)
    assert all(low < value < high for low, value, high in zip(line.low, line.values, line.high, strict=True))


def test_twice_the_training_is_predicted_of_each_f(fake_store: FakeStore, tmp_path: Path) -> None:
    """FID halves from half to the end, so it halves again: f = 4 is at 7.5, and alone with f = 8."""
    page = make_report(study(fake_store), tmp_path / "page", fake_store.root, "compression")
    said = " ".join((page.parent / "report.md").read_text().split()).replace("\\", "")
    assert (
        "Prediction for twice the training (8 000 images), by a power law through its half and its end: FID is lowest at f = 4"
        in said
    )
    assert "| first stage | FID after 2 000 | FID after 4 000 | predicted after 8 000 | lowest in |" in said
    found = re.search(r"\| f = 4 \| (\S+) \[[^|]*\| (\S+) \[[^|]*\| (\S+) \[(\S+), (\S+)\] \|", said)
    assert found is not None
    half, end, twice, low, high = map(float, found.groups())
    assert half == pytest.approx(2 * end, rel=0.02) and twice == pytest.approx(end / 2, rel=0.02) and low < twice < high


def test_a_gaussian_has_a_row_and_no_part_in_the_verdicts(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = study(fake_store)
    without = advice(folders)
    folders += [gaussian(fake_store, ae, 100.0 + n) for n, ae in enumerate(AES)]
    assert advice(folders) == without
    found = read_study(read_runs(folders))
    assert [each.label for each in found.gaussians] == [f"{ae} gaussian" for ae in AES] and len(found.denoisers) == 10
    page = make_report(folders, tmp_path / "page", fake_store.root, "compression")
    text = (page.parent / "report.md").read_text()
    assert "| kl\\_f4\\_quick gaussian | " in text and "denoiser dg" not in text and "loss over training images" in text
    assert "| first stage | c | gain over linear (dB) | rFID |" in text and "| f = 4 | 3 | 1.50 | " in text
    rows = fid_sources.rows(found, read_table(found, WORK))
    assert [row.fids["gaussian"].value for row in rows] == pytest.approx([100, 101, 102, 103, 104], abs=1)
    assert [row.rfid.value for row in rows if row.rfid is not None] == [0, 1, 2, 3, 4]


def test_fid_of_val_images_and_reconstructions_is_that_of_their_features(fake_store: FakeStore) -> None:
    folders = study(fake_store)
    rng = np.random.default_rng(0)
    real, val, decoded = (rng.standard_normal((n, 4)).astype(np.float32) for n in (80, 40, 40))
    (fake_store.root / "reference" / "shapes-r1").mkdir(parents=True)
    np.savez(fake_store.root / "reference" / "shapes-r1" / "features.npz", features=real)
    for folder in (fake_store.root / "reconstructions").iterdir():
        np.savez(folder / "original.npz", features=val)
        np.savez(folder / "reconstructed.npz", features=decoded + 1)
    for file in fake_store.root.glob("scores/*/scores.json"):
        raw = json.loads(file.read_text())
        write_json(file, raw | {"card": raw["card"] | {"extractor_hash": "abcdefabcdef0123"}})
    found = read_study(read_runs(folders))
    table = read_table(found, WORK)
    rows = fid_sources.rows(found, table)
    for row in rows:
        assert row.fids["val"].value == pytest.approx(fid_score(val, real, 20, 0)[0].value)
        assert row.fids["reconstructions"].value == pytest.approx(fid_score(decoded + 1, real, 20, 0)[0].value)
    figure = fid_sources.over_f(rows, table)
    assert figure is not None and [line.split for line in figure.series] == ["val images", "reconstructions", "samples"]


def test_speed_over_steps_and_the_decoder_in_and_out(fake_store: FakeStore) -> None:
    folders = study(fake_store)
    verdicts = advice(folders)
    for ae in ("identity", "kl_f4_quick"):
        timed(fake_store, f"{ae}-000", "ddim", (10.0, 5.0))
        for steps in (10, 200):
            folders.append(of_other_steps(fake_store, ae, FIDS[ae] * (2 if steps == 10 else 0.9), steps))
            timed(fake_store, f"{ae}-s{steps}", "ddim", (steps / 5, 5.0))
    found = read_study(read_runs(folders))
    assert advice(folders) == verdicts and len(found.cells) == 10 and found.axis is None  # the ladder is in no verdict
    assert sorted(each.label for each in found.ladder) == [
        f"{ae} seed=0 {n} steps" for ae in ("identity", "kl_f4_quick") for n in (10, 200)
    ]
    table = read_table(found, WORK)
    ladders = sampling_speed.ladders(found, table)
    assert [arm.f for arm, _ in ladders] == [1, 4]
    for way, speeds in (("both", [100 / 45, 100 / 15, 100 / 7]), ("sampler", [2.5, 10, 50])):
        for line in sampling_speed.figure(ladders, table, way).series:
            assert line.images == pytest.approx(speeds) and len(line.values) == 3
    said = str(sampling_speed.blocks(found, table, []))
    assert "CPU seconds, 1 thread, a processor" in said


def test_steps_of_equal_standing_are_an_axis(fake_store: FakeStore) -> None:
    """Two first stages, each in every number of steps, as often and as fully scored: a study of steps, not of f."""
    folders = []
    for ae in ("identity", "kl_f4_quick"):
        first = trained(fake_store, ae, 20.0)
        own_first_stage(fake_store, first, ae)
        folders += [first, of_other_steps(fake_store, ae, 25.0, 10)]
    found = read_study(read_runs(folders))
    assert not found.ladder and len(found.cells) == 4 and found.axis is not None and found.axis.knob == "steps"


def test_ranks_of_latents_and_of_fid(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = study(fake_store)
    order = sorted(FIDS, key=FIDS.__getitem__)
    for folder in folders:
        ae = json.loads((folder / "run.json").read_text())["choices"]["ae"]
        file = fake_store.root / "diagnostics" / f"{ae}-x" / "diagnostics.json"
        found = {name: score(value + order.index(ae), 0.01) for name, value in DIAGNOSTICS.items()}
        write_json(file, {"sigma": 0.3, "chance": 0.1, "scores": {"latent": found, "white": {}}})
        edit(folder, lambda raw, file=file, ae=ae: raw["stages"].append(
            fake_store.entry("diagnostics", f"x{ae}", file.parent, "diagnostics", 1.0)
        ))  # fmt: skip
    runs = read_runs(folders)
    found = read_study(runs)
    blocks = compression_page.latent_ranks.blocks(found, read_table(found, WORK), runs)
    rows = [[entry.text for entry in row] for row in blocks[0].rows]  # type: ignore[union-attr]
    assert len(rows) == 5 and all(row[1] == "1.00" and row[3] == "5" for row in rows)


def test_every_point_leads_to_its_run(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = [
        *study(fake_store),
        *(gaussian(fake_store, ae, 90.0) for ae in AES),
        of_other_steps(fake_store, "identity", 40.0, 10),
    ]
    page = make_report(folders, tmp_path / "page", fake_store.root, "compression").read_text()
    places = set(re.findall(r'id="([^"]+)"', page))
    figures = re.findall(r'<figure class="curve" id="figure-([^"]+)">(.*?)</figure>', page, re.S)
    for name, inside in figures:
        found, drawn = re.findall(r'<a href="#([^"]+)" tabindex="-1"><circle', inside), inside.count("<circle")
        assert len(found) == (0 if name.startswith("paper-") else drawn), name
        assert drawn and set(found) <= places
    assert len([name for name, _ in figures if name.startswith("paper-fig6")]) >= 1


def test_the_paper_s_figures_are_its_numbers() -> None:
    six, seventeen = paper_figures.over_training("fid")
    assert [line.values[-1] for line in six.series] == [68.5, 55.5, 34.5, 31, 36, 86.5]
    assert (
        six.series[0].values == seventeen.series[0].values and seventeen.series[0].images[-1] == 35
    )  # 2 M steps, 35 days
    seven = paper_figures.over_speed()[0]
    eight = next(line for line in seven.series if line.split == "f = 8")
    assert eight.values[2] == pytest.approx(math.exp(3.45)) and eight.images[2] == 6.8
    assert all("digitised" in figure.note and "compare shapes" in figure.note for figure in (six, seventeen, seven))
