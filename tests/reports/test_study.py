"""The page of a study of samples, from a store written by hand: what it draws, says and refuses follows from the runs."""

import csv
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeStore, little_pictures, write_json, write_rows

from ldmlab.errors import DataError
from ldmlab.metrics.intervals import mean_score
from ldmlab.reports import numbers, study_cells, study_text
from ldmlab.reports import study as study_page
from ldmlab.reports.collect import read_runs
from ldmlab.reports.drawing import DrawnFigure
from ldmlab.reports.figures import data_csv
from ldmlab.reports.publish import make_report
from ldmlab.reports.study import Counted
from ldmlab.reports.study_cells import Study, read_study
from ldmlab.reports.study_losses import loss_figures

N = 60
PICTURES = little_pictures(30, seed=5)
CARD: dict[str, Any] = {
    "reference": "r1", "samples": N, "resolution": 32, "label_mode": "uniform", "sampler": "ddim", "steps": 50, "eta": 0.0,
    "grid": "trailing", "evaluations": None, "guidance": 1.0, "guidance_interval": None, "guidance_rescale": None,
    "weights": "ema", "snapshot_images": 4000, "extractor": "shapes", "seed": 0, "versions": {"torch": "2.15.0"},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "seed": 0,
    "ldm": {"network": {"width": 32}, "fit": {"lr": 1e-3, "batch_size": 64}, "budget": {"parameters": None}},
    "objective": {"target": "eps", "schedule": {"_target_": "linear"}},
}
NOTHING = Counted({}, {})


def cell(
    store: FakeStore, id_: str, fid: float, denoiser: str = "d1", choices: dict[str, str] | None = None,
    config: dict[str, Any] | None = None, precision: float = 0.5, like: str = "", **card: Any,
) -> Path:  # fmt: skip
    """One run. The images of all cells differ alike from their mean: 3 in FID, which pairing cancels but for 0.3."""
    rng = np.random.default_rng(list((like or id_).encode()))
    shared_N = np.random.default_rng(0).standard_normal(N)
    folder, samples = (
        store.root / "scores" / f"shapes-{id_}",
        store.root / "samples" / f"{card.get('sampler', 'ddim')}-{id_}",
    )
    own_N = rng.standard_normal(N)
    numbers = {
        "fid": mean_score(fid + 3 * shared_N + 0.3 * (own_N - own_N.mean()) - 3 * shared_N.mean(), 200, 0, "distance"),
        "precision": mean_score(precision + 0.1 * shared_N - 0.1 * shared_N.mean(), 200, 0, "share"),
    }
    write_json(
        folder / "scores.json",
        {"snapshot_images": 4000, "scores": {k: v.to_dict() for k, v in numbers.items()}, "card": CARD | card,
         "card_short": "short", "warnings": ["60 samples: few"]},
    )  # fmt: skip
    samples.mkdir(parents=True)
    np.save(samples / "images.npy", PICTURES)
    conditions = {"seed": list(range(30)), "label": [i % 10 for i in range(30)], "class_names": list("abcdefghij")}
    write_json(samples / "conditions.json", conditions)
    trained = store.root / "denoiser" / f"net-{denoiser}"
    rows = [
        {"images": 400 * i, "step": i, "split": "train", "images_per_second": 90.0, "loss": 1 / i} for i in range(1, 11)
    ]
    rows += [
        {"images": 400 * i, "step": i, "split": "val", "loss": 2 / i, "loss_t0": 3 / i, "loss_t1": 1 / i}
        for i in (5, 10)
    ]
    write_rows(trained / "metrics.jsonl", rows)
    entries = [
        store.entry("denoiser", denoiser, trained, "UNet 2.6 M · 4 000 img", 61.0),
        store.entry("samples", f"{id_}s", samples, "60 samples", 3.0),
        store.entry("scores", id_, folder, "FID", 1.0, {"samples": f"{id_}s"}),
        store.entry("data", "da7a", store.root / "data/shapes-da7a", "32 px", 1.0),
    ]
    return store.run(
        entries, id_, "shapes-unet", choices={"data": "shapes", "ldm": "unet_tiny", "objective": "v_cosine"} | (choices or {}),
        config=CONFIG | (config or {}), studies=["some"], command=f"python src/train.py sweeps=some cell={id_}",
    )  # fmt: skip


def of_samplers(store: FakeStore) -> list[Path]:
    """dpmpp at 20 is as good as ddim at 50, heun at 19 is worse, euler is ddim."""
    fids = {"ddim": (40, 20, 10), "euler": (40, 20, 10), "heun": (60, 14, 9), "dpmpp_2m": (20, 10.02, 9.99)}
    return [
        cell(store, f"{sampler}{steps}", fid, sampler=sampler, steps=steps, eta=0.0 if sampler == "ddim" else None,
             evaluations=2 * steps - 1 if sampler == "heun" else None, like=f"{sampler}{steps}".replace("euler", "ddim"))
        for sampler, each in fids.items()
        for steps, fid in zip((5, 10 if sampler == "heun" else 20, 50), each, strict=True)
    ]  # fmt: skip


def of_guidance(store: FakeStore) -> list[Path]:
    """Everywhere FID is least at 2 and precision rises; in the interval guidance does no harm."""
    return [
        cell(store, "w1", 20, guidance=1.0),
        *(
            cell(store, f"w{w}{'in' if i else ''}", fid, guidance=float(w), guidance_interval=i, precision=0.5 + w / 50)
            for i, fids in ((None, (15.0, 30.0)), ([0.5, 5.0], (15.01, 12.0)))
            for w, fid in zip((2, 5), fids, strict=True)
        ),
    ]


def of_objectives(store: FakeStore) -> list[Path]:
    chosen = {"v_linear": 12.0, "eps_linear": 15.0, "flow": 12.02, "edm": 30.0}
    return [
        cell(store, f"o{name}", fid, f"d{name}", {"objective": name}, {"objective": {"target": name[0], "schedule": {"_target_": name}}})
        for name, fid in chosen.items()
    ]  # fmt: skip


def study_of(folders: list[Path]) -> Study:
    return read_study(read_runs(folders))


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.ids |= {value for key, value in attrs if key == "id"}
        self.targets += [value for key, value in attrs if key in ("href", "src", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- what varies --------------------------------------------------------------------------------------------------------


def test_steps_that_follow_from_nothing_are_the_axis_and_evaluations_its_places(fake_store: FakeStore) -> None:
    study = study_of(of_samplers(fake_store))
    assert study.knobs == ("sampler", "steps") and study.axis is study_cells.AXES[0]  # eta follows from the sampler
    assert [line.label for line in study.lines] == ["ddim", "euler", "heun", "dpmpp_2m"]
    assert [c.at(study.axis) for c in study.lines[2].cells] == [9, 19, 99]
    assert study.lines[2].cells[1].label == "heun at 19 evaluations"


def test_a_closed_form_stands_in_the_table_and_not_on_a_logarithmic_axis(fake_store: FakeStore) -> None:
    """It asks no network: 0 evaluations."""
    folders = [cell(fake_store, f"s{n}", 12.0 + n, steps=n, evaluations=n) for n in (10, 50)]
    folders.append(
        cell(fake_store, "closed", 30.0, "d2", {"ldm": "gaussian"}, sampler=None, steps=None, evaluations=None)
    )
    study = study_of(folders)
    assert study.axis is study_cells.AXES[0] and len(study.cells) == 3
    assert [line.images for line in study_page.score_figures(study)[0].series] == [[10, 50]]
    assert len(study_page.score_table(study, []).rows) == 3


def test_seeds_of_one_cell_stand_together_whatever_ended_first(fake_store: FakeStore) -> None:
    ended = [("v", 0), ("eps", 0), ("eps", 1), ("v", 1)]
    folders = []
    for name, seed in ended:
        config = {"objective": {"target": name}, "ldm": {"seed": seed}}
        folders.append(cell(fake_store, f"o{name}{seed}", 12.0, f"d{name}{seed}", {"objective": name}, config))
    assert [c.label for c in study_of(folders).cells] == ["v seed=0", "v seed=1", "eps seed=0", "eps seed=1"]


def test_a_cell_without_guidance_begins_every_line_of_guidance(fake_store: FakeStore) -> None:
    study = study_of(of_guidance(fake_store))
    assert study.axis is not None and study.axis.knob == "guidance"
    assert [(line.label, [c.knobs["guidance"] for c in line.cells]) for line in study.lines] == [
        ("everywhere", [1, 2, 5]), ("in 0.5–5", [1, 2, 5]),
    ]  # fmt: skip
    assert len(study.cells) == 5 and study.cells[0].label == "guidance 1"


def test_guidance_by_kind_gives_the_same_knobs(fake_store: FakeStore) -> None:
    """A card holds {kind: its options} of the kinds that act: no entry is no guidance."""
    cards: list[dict[str, Any]] = [
        {},
        *(
            {"classifier_free": {"scale": w, **({"interval": i} if i else {})}}
            for i in (None, [0.5, 5.0])
            for w in (2.0, 5.0)
        ),
    ]
    study = study_of([cell(fake_store, f"k{n}", 10.0 + n, guidance=card) for n, card in enumerate(cards)])
    assert study.axis is not None and study.axis.knob == "guidance"
    assert [(line.label, [c.knobs["guidance"] for c in line.cells]) for line in study.lines] == [
        ("everywhere", [1, 2, 5]), ("in 0.5–5", [1, 2, 5]),
    ]  # fmt: skip
    auto = [cell(fake_store, f"a{w}", 9.0, guidance={"autoguidance": {"scale": w, "weak": "d2"}}) for w in (1.5, 3.0)]
    study = study_of(auto)
    assert study.knobs == ("autoguidance.scale",) and [c.label for c in study.cells] == [
        "autoguidance 1.5", "autoguidance 3",
    ]  # fmt: skip


def test_a_choice_of_a_group_speaks_for_its_options(fake_store: FakeStore) -> None:
    study = study_of(of_objectives(fake_store))
    assert study.knobs == ("objective",) and study.axis is None and len(study.denoisers) == 4
    other = cell(fake_store, "lr", 11.0, "dlr", {"objective": "flow"}, {
        "objective": {"target": "f", "schedule": {"_target_": "flow"}}, "ldm": {**CONFIG["ldm"], "fit": {"lr": 1e-2, "batch_size": 64}},
    })  # fmt: skip
    wider = study_of([*sorted(fake_store.root.glob("runs/run-o*")), other])
    assert wider.knobs == ("objective", "ldm.fit.lr") and wider.cells[-1].label == "flow lr=0.01"


def test_a_width_that_a_budget_chose_is_no_knob(fake_store: FakeStore) -> None:
    folders = [
        cell(
            fake_store,
            ldm,
            10.0,
            ldm,
            {"ldm": ldm},
            {"ldm": {"network": {"width": w}, "budget": {"flops_per_image": 1e9}}},
        )
        for ldm, w in (("unet_tiny", 32), ("dit_tiny", 96))
    ]
    assert study_of(folders).knobs == ("ldm",)
    same = cell(fake_store, "again", 10.0, "d9", {"ldm": "unet_tiny"}, {
        "ldm": {"network": {"width": 64}, "budget": {"flops_per_image": 2e9}}})  # fmt: skip
    assert "ldm.budget.flops_per_image" in study_of([folders[0], same]).knobs


def test_a_run_from_before_choices_were_recorded_is_read_from_its_command(fake_store: FakeStore) -> None:
    folders = [cell(fake_store, name, 10.0, name) for name in ("a", "b")]
    for folder in folders:
        raw = read_runs([folder])[0]
        assert raw.choice("objective") == "v_cosine" and raw.choice("eval") is None
    store = FakeStore(fake_store.root.parent / "old")
    run = read_runs([store.run([], "x", command="python src/train.py objective=flow ldm=a ldm=b")])[0]
    assert run.choice("objective") == "flow" and run.choice("ldm") == "b"


# ---- what is said -------------------------------------------------------------------------------------------------------


def test_fewer_evaluations_are_held_against_the_paper_s_sampler(fake_store: FakeStore) -> None:
    study = study_of(of_samplers(fake_store))
    assert study_text.baseline(study).label == "ddim at 50 evaluations"
    lead, good, bad = study_text.verdicts(study)
    assert lead.startswith("Lowest FID: heun at 99 evaluations, 9.00 [")
    assert good.startswith("At 20 evaluations or fewer not worse than ddim at 50 evaluations (FID 10.00 [")
    assert "dpmpp_2m at 20 evaluations (10.0 [" in good and "heun" not in good
    assert "heun at 19 evaluations (+4.0" in bad and "ddim at 20 evaluations" in bad and "dpmpp" not in bad


def test_guidance_says_where_the_score_is_least_and_what_the_others_do(fake_store: FakeStore) -> None:
    said = "\n".join(study_text.verdicts(study_of(of_guidance(fake_store))))
    assert "Everywhere: FID is least at 2, 15.0 [" in said and "better than no guidance (−5.0" in said
    assert "Everywhere: from 1 to 5 precision rises (+0.1" in said
    assert "In 0.5–5: FID is least at 5, 12.0 [" in said
    assert "FID in 0.5–5 against everywhere, at equal guidance: not distinguishable at 2; better at 5." in said


def test_cells_without_order_are_held_against_the_paper_s_choice_and_each_other(fake_store: FakeStore) -> None:
    study = study_of(of_objectives(fake_store))
    assert study_text.baseline(study).label == "eps_linear"  # though it was not the first to run
    lead, against = study_text.verdicts(study)
    assert lead.endswith("not distinguishable from it: flow.")
    assert "better: v_linear (−3.00 [" in against and "worse: edm (+15.0 [" in against
    (fid, precision) = study_text.ties(study)
    assert fid == f"Not distinguishable in FID by {numbers.PAIRED}: v_linear and flow."
    assert precision.count(" and ") == 6  # all pairs: the same numbers
    table = study_page.score_table(study, [c.run for c in study.cells])
    column = {row.label: row.cells[0] for row in table.rows}
    assert [name for name, c in column.items() if c.tied] == ["v_linear", "flow"] and not any(
        c.best for c in column.values()
    )


def test_the_best_is_bold_only_where_it_is_told_from_all_others(fake_store: FakeStore) -> None:
    folders = of_objectives(fake_store)
    study = study_of([folders[1], folders[2], folders[3]])
    table = study_page.score_table(study, [c.run for c in study.cells])
    assert [row.label for row in table.rows if row.cells[0].best] == ["flow"]
    assert all(row.cells[1].tied for row in table.rows)


def test_pairing_is_what_tells_cells_apart(fake_store: FakeStore) -> None:
    """Unpaired, each FID has an interval of about ±0.8: ±0.1 of the difference is what the shared images leave."""
    study = study_of([cell(fake_store, "a", 10.0, "a", {"ldm": "a"}), cell(fake_store, "b", 10.5, "b", {"ldm": "b"})])
    one, two = study.cells
    found = study_text.difference(one, two, study.leading)
    assert found is not None and found.distinguishable and found.verdict == "worse" and found.score.low is not None
    assert 0.3 < found.score.low < 0.5 and one.scores.scores["fid"].overlaps(two.scores.scores["fid"])


def test_another_protocol_is_not_compared(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = of_samplers(fake_store)[:2]
    odd = cell(fake_store, "odd", 1.0, sampler="unipc", steps=20, reference="r2")
    study = study_of([*folders, odd])
    assert all("unipc" not in text.partition(": ")[2] for text in study_text.ties(study))
    html = study_page.report([*folders, odd], tmp_path / "page", "some", [], NOTHING).read_text()
    assert "reference: r2 (others: r1)" in html
    drawn = list(csv.DictReader(io.StringIO(data_csv(study_page.score_figures(study)[0]))))
    assert [row["run"] for row in drawn if row["other_protocol"] == "yes"] == ["unipc"]


def test_options_of_one_sampler_alone_follow_from_it_and_two_of_one_sampler_are_compared(fake_store: FakeStore) -> None:
    ddim = of_samplers(fake_store)[:2]
    ddpm = [
        cell(fake_store, f"m{steps}", fid, sampler="ddpm", steps=steps, eta=None, sampler_options={"variance": "small"})
        for steps, fid in ((5, 50.0), (20, 8.0))
    ]
    study = study_of([*ddim, *ddpm])
    assert study.knobs == ("sampler", "steps") and "ddpm at 20 evaluations" in [cell.label for cell in study.cells]
    assert study_text.verdicts(study)[0].startswith("Lowest FID: ddpm at 20 evaluations")
    assert not [note for note in study_page.score_table(study, []).notes if note.kind == "comparability"]
    large = cell(fake_store, "l20", 9, sampler="ddpm", steps=20, eta=None, sampler_options={"variance": "large"})
    assert study_of([*ddim, *ddpm, large]).knobs == ("sampler", "steps", "sampler.variance")


# ---- what is drawn ------------------------------------------------------------------------------------------------------


def test_lines_that_lie_on_each_other_are_drawn_once(fake_store: FakeStore) -> None:
    figures = study_page.score_figures(study_of(of_samplers(fake_store)))
    fid = figures[0]
    assert [s.name for s in fid.series] == ["ddim, euler", "heun", "dpmpp_2m"]
    assert fid.series[1].images == [9, 19, 99] and fid.series[1].values == pytest.approx([60, 14, 9])
    assert all(low < v < high for s in fid.series for low, v, high in zip(s.low, s.values, s.high, strict=True))
    assert fid.x == "network evaluations an image" and fid.span == "log" and "ddim, euler" in DrawnFigure(fid).light


def test_cells_without_order_are_rows(fake_store: FakeStore) -> None:
    fid = study_page.score_figures(study_of(of_objectives(fake_store)))[0]
    assert [(s.name, round(s.values[0])) for s in fid.series] == [
        ("v_linear", 12),
        ("eps_linear", 15),
        ("flow", 12),
        ("edm", 30),
    ]
    drawing = DrawnFigure(fid).light
    assert all(name in drawing for name in ("v_linear", "edm", "FID")) and "eps_linear: 15" in fid.alt


def test_losses_by_noise_level_are_those_of_validation(fake_store: FakeStore) -> None:
    found = loss_figures(study_of(of_objectives(fake_store)))
    assert [f.title for f in found] == ["loss", "loss, least noise", "loss, most noise"]
    assert [s.name for s in found[1].series] == ["v_linear", "eps_linear", "flow", "edm"]
    assert found[1].series[0].values == [3 / 5, 3 / 10]
    assert loss_figures(study_of(of_samplers(fake_store))) == []  # one denoiser: nothing to compare


def test_pictures_side_by_side_share_seed_and_class(fake_store: FakeStore) -> None:
    study = study_of(of_guidance(fake_store))
    (title, everywhere), (_, limited) = study_page.side_by_side(study)
    assert [row.label for row in limited.rows] == ["1", "2", "5"] and title == "everywhere"
    pictures = study.cells[0].samples.pictures
    assert [pictures.labels[tile.index] for tile in everywhere.rows[0].tiles] == list(range(10))
    second = everywhere.rows[1].tiles
    assert (np.stack([t.image_HWC for t in second]) == PICTURES[[t.index for t in second]]).all()
    said = study_page.columns_said(study, everywhere)
    assert "one class (a, b, c" in said and "guidance scale at the left" in said


# ---- the page -----------------------------------------------------------------------------------------------------------


def test_the_page_has_every_cell_its_command_and_its_files(fake_store: FakeStore, tmp_path: Path) -> None:
    folders, out = of_objectives(fake_store), tmp_path / "page"
    counted = Counted({"dflow": (2_600_000, 3.19e8), "dedm": (1_800_000, 3.32e8)}, {"dv_linear": "too old"})
    html = study_page.report(
        folders, out, "some", [("objective=z0", "exit code 1, see job-4.log")], counted
    ).read_text()
    page = Page(html)
    assert page.text.count("Objectives on shapes, 32 px") == 2
    for name in ("eps_linear", "v_linear", "flow", "edm"):
        assert page.text.count(name) >= 3 and f"cell=o{name}" in page.text
    assert "objective=z0" in page.text and "Not finished" in page.text
    assert (
        "2.60 M" in page.text
        and "0.332" in page.text
        and "too old" in page.text
        and "differ by up to 4.1%" in page.text
    )
    assert all(t.startswith(("#", "data:")) or (out / t).is_file() for t in page.targets)  # from disk, no network
    assert {t[1:] for t in page.targets if t.startswith("#")} <= page.ids
    text = (out / "report.md").read_text()
    assert "missing: `objective=z0`" in text and "≈ 12.0" in text and "python src/report.py study=some" in text
    assert all((out / line.split("](")[1].rstrip(")")).is_file() for line in text.splitlines() if line.startswith("!["))
    assert str(tmp_path) not in text and str(tmp_path) not in html
    rows = {row["cell"]: row for row in csv.DictReader(io.StringIO((out / "table.csv").read_text()))}
    assert float(rows["edm"]["fid_less_baseline"]) == pytest.approx(15) and rows["eps_linear"]["baseline"] == "yes"
    assert float(rows["edm"]["fid_low"]) < 30 < float(rows["edm"]["fid_high"]) and rows["edm"]["objective"] == "edm"


def test_a_study_of_lines_has_a_column_for_the_line_and_one_for_the_place(
    fake_store: FakeStore, tmp_path: Path
) -> None:
    study_page.report(of_samplers(fake_store), tmp_path, "some", [], NOTHING)
    text = (tmp_path / "report.md").read_text()
    assert (
        "| sampler | evaluations | FID ↓ |" in text
        and "| heun | 19 | " in text
        and "Less ddim at 50 evaluations" in text
    )
    assert "Varies: sampler, steps, eta, evaluations." in text and "- guidance: 1.0" in text
    assert "all cells: denoiser `denoiser/net-d1`" in text


def test_equal_runs_give_equal_bytes(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = of_guidance(fake_store)
    for name in ("one", "two"):
        study_page.report(folders, tmp_path / name, "some", [], NOTHING)
    one = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert one == {p: (tmp_path / "two" / p).read_bytes() for p in one} and len(one) > 8


def test_unfinished_cells_are_named_and_a_study_without_scores_is_refused(
    fake_store: FakeStore, edit: Any, tmp_path: Path
) -> None:
    folders = of_samplers(fake_store)[:2]
    edit(folders[0] / "run.json", lambda run: run["stages"][2].update(state="unfinished"))
    html = study_page.report(folders, tmp_path / "page", "some", [], NOTHING).read_text()
    assert "Not finished" in html and "scores unfinished" in html and "1 cell<" in html
    edit(folders[1] / "run.json", lambda run: run["stages"][2].update(state="unfinished"))
    with pytest.raises(DataError, match=r"study=some: no samples are scored yet.*-m sweeps=some"):
        study_page.report(folders, tmp_path / "other", "some", [], NOTHING)
    assert not (tmp_path / "other").exists()


def test_a_study_of_samples_gets_this_page_and_says_what_it_cannot_count(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = of_samplers(fake_store)[:2]
    page = make_report(folders, tmp_path / "out", fake_store.root, "some")
    assert "Study some" in page.read_text() and "not counted" in page.read_text()
    assert "Study" not in make_report(folders, tmp_path / "plain", fake_store.root).read_text()
