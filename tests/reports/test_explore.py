"""The pages to explore: their numbers are those of the tables, and in a browser they do what a person asks of them."""

import io
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from browser import DESKTOP, PHONE, Browser
from conftest import FakeStore, little_pictures, write_json
from PIL import Image
from test_study import NOTHING, cell, of_guidance, of_objectives, of_samplers

from ldmlab.reports import explore, gallery, study
from ldmlab.reports.collect import read_runs
from ldmlab.reports.drawing import DrawnFigure
from ldmlab.reports.figures import Figure, Series
from ldmlab.reports.points import PICTURES, Value, read_points, same_noise, script_json
from ldmlab.reports.records import SampleSet
from ldmlab.reports.run import report as compare

LIMIT = 3_000_000  # bytes of explore.html
needs_vega = pytest.mark.skipif(not explore.available(), reason=explore.ABSENT)
needs_browser = pytest.mark.skipif(browser.found() is not None, reason=str(browser.found()))
LOOKS = list(product((DESKTOP, PHONE), ("light", "dark")))


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S
    )
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


# ---- points of figures --------------------------------------------------------------------------------------------------


def test_a_point_of_a_figure_says_its_run_value_and_interval_and_lies_where_it_is_drawn() -> None:
    line = Series("a < b", [1.0, 10.0, 100.0], [5.0, 3.0, 4.0], [4.5, 2.5, 3.5], [5.5, 3.5, 4.5], [False, True, False],
                  style="points", sources=("scores/x-1", "scores/x-2", "scores/x-3"))  # fmt: skip
    figure = Figure("fid", "FID", "FID ↓", (line, Series("loss", [1.0], [2.0])), x="evaluations", span="log")
    found = DrawnFigure(figure).spots
    assert [spot.text for spot in found] == [
        "a < b, evaluations 1, FID 5.00 [4.50, 5.50]",
        "a < b, evaluations 10, FID 3.00 [2.50, 3.50], another protocol",
        "a < b, evaluations 100, FID 4.00 [3.50, 4.50]",
    ]
    assert [spot.source for spot in found] == list(line.sources)
    assert found[1].x - found[0].x == pytest.approx(found[2].x - found[1].x, abs=0.2)  # a logarithmic axis
    assert found[0].y < found[2].y < found[1].y
    drawn = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"', DrawnFigure(figure).light)
    for spot in found:  # the drawing's own markers
        assert any(abs(float(x) - spot.x) < 0.2 and abs(float(y) - spot.y) < 0.2 for x, y in drawn), spot


def test_points_of_a_page_lead_to_their_cells(fake_store: FakeStore, tmp_path: Path) -> None:
    page = study.report(of_objectives(fake_store), tmp_path / "out", "some", [], NOTHING).read_text(encoding="utf-8")
    found = re.findall(r'<a href="#(cell-\w+)" tabindex="-1"><circle [^>]*><title>([^<]*)</title>', page)
    texts = {anchor: text for anchor, text in found if "FID" in text}
    assert set(texts) == {"cell-ov_linear", "cell-oeps_linear", "cell-oflow", "cell-oedm"}
    assert re.fullmatch(r"edm, FID 30\.0 \[[\d.]+, [\d.]+\]", texts["cell-oedm"])
    assert all(f'id="{anchor}"' in page for anchor, _ in found) and "<script" not in page


# ---- what the pages hold ------------------------------------------------------------------------------------------------


def test_points_are_the_scores_of_the_store_with_costs_and_knobs(fake_store: FakeStore) -> None:
    runs = read_runs(of_samplers(fake_store))
    explored = read_points(runs, {"d1": (2_600_000, 5e9)})
    assert len(explored.points) == 12 and explored.axes[:2] == ("cost.evaluations", "score.fid")
    for point in explored.points:
        score, own = point.run.last_scored.scores.scores["fid"], point.values["score.fid"]  # type: ignore[union-attr]
        assert isinstance(own, Value) and (own.value, own.low, own.high) == (score.value, score.low, score.high)
        assert own.other == "" and point.last
    (heun,) = [p for p in explored.points if p.id == "heun10"]
    assert heun.values["cost.evaluations"].value == 19 and heun.values["knob.sampler"] == "heun"  # type: ignore[union-attr]
    titles = {column.key: column for column in explored.columns}
    assert titles["score.fid"].better == "lower" and titles["score.precision"].better == "higher"
    assert "cost.tflop" not in titles  # one denoiser: it differs in nothing
    data = explored.told(Path("out"), frozenset(["cell-heun10"]))
    assert next(p["href"] for p in data["points"] if p["id"] == "heun10") == "index.html#cell-heun10"


def test_a_report_in_the_store_leads_to_the_pages_of_its_runs(fake_store: FakeStore, tmp_path: Path) -> None:
    explored = read_points(read_runs(of_objectives(fake_store)))
    (fake_store.root / "runs/run-oflow/index.html").write_text("its page")
    out = fake_store.root / "reports/abc"
    inside = {p["id"]: p["href"] for p in explored.told(out, frozenset(["cell-oedm"]))["points"]}
    assert inside == {
        "oflow": "../../runs/run-oflow/index.html",
        "oedm": "index.html#cell-oedm",
        "ov_linear": "",
        "oeps_linear": "",
    }
    assert (out / inside["oflow"]).resolve() == (fake_store.root / "runs/run-oflow/index.html").resolve()
    outside = {p["id"]: p["href"] for p in explored.told(tmp_path / "elsewhere", frozenset())["points"]}
    assert set(outside.values()) == {""}  # a folder that may be carried away


def test_another_protocol_is_said_and_all_snapshots_are_points(fake_store: FakeStore) -> None:
    runs = [fake_store.run([fake_store.denoiser(), *fake_store.snapshot("a1", 2000, 90.0), *fake_store.snapshot("a2", 40000, 20.0)], "r1"),
            fake_store.run([*fake_store.snapshot("b2", 40000, 15.0, card={"n": 500})], "r2")]  # fmt: skip
    explored = read_points(read_runs(runs))
    assert [(p.id, p.last) for p in explored.points] == [("a15c", False), ("a25c", True), ("b25c", True)]
    other = [p.values["score.fid"].other for p in explored.points]  # type: ignore[union-attr]
    assert other == ["", "", "n: 500 (others: 2000)"]
    assert [p.values["cost.images"].text for p in explored.points] == ["2\u202f000", "40\u202f000", "40\u202f000"]  # type: ignore[union-attr]


def test_first_stages_alone_and_a_single_point(fake_store: FakeStore, tmp_path: Path) -> None:
    one = fake_store.run([fake_store.autoencoder()], "r1")
    two = fake_store.run([fake_store.autoencoder("4ab07e22", psnr=25.0)], "r2")
    explored = read_points(read_runs([one, two]))
    assert [p.values["first.psnr"].value for p in explored.points] == [28.412, 25.0]  # type: ignore[union-attr]
    assert explored.axes[1] == "first.psnr" and explored.noises == []
    assert explore.beside(read_points(read_runs([one]))) == []
    page = compare([one, two], tmp_path / "out")
    assert (page.parent / "explore.html").exists() == explore.available() and not (
        page.parent / "gallery.html"
    ).exists()


def test_equal_noise_means_equal_seed_and_condition() -> None:
    pictures = little_pictures(40, size=8)

    def drawn(seeds: list[int], label: int = 0) -> SampleSet:  # fmt: skip
        return SampleSet(pictures[: len(seeds)], [label + s % 5 for s in seeds], seeds, list("abcdefghij"))

    sets = {"a": drawn(list(range(40))), "b": drawn(list(range(39, 9, -1))), "c": drawn(list(range(40)), 1)}
    both, alone = same_noise(sets)
    assert set(both.indices) == {"a", "b"} and set(alone.indices) == {"c"} and len(both.keys) == PICTURES
    for i, j, key in zip(both.indices["a"], both.indices["b"], both.keys, strict=True):
        assert sets["a"].key(i) == sets["b"].key(j) and key.endswith(f"seed {sets['a'].seeds[i]}")
    assert same_noise({}) == []


def test_strips_are_the_stored_pictures(fake_store: FakeStore, tmp_path: Path) -> None:
    folders = of_objectives(fake_store)
    page = study.report(folders, tmp_path / "out", "some", [], NOTHING)
    explored = read_points(read_runs(folders))
    (noise,) = explored.noises
    for point in explored.points:
        assert point.samples is not None
        strip = np.asarray(Image.open(io.BytesIO((page.parent / "explore" / f"{point.samples.id}.png").read_bytes())))
        every = point.samples.pictures.images_NHWC
        for k, i in enumerate(noise.indices[point.samples.id]):
            assert np.array_equal(strip[:, 32 * k : 32 * (k + 1)], every[i])


def test_names_cannot_leave_the_script_element() -> None:
    text = script_json({"cell": "</script><b>&amp;"})
    assert "<" not in text and json.loads(text) == {"cell": "</script><b>&amp;"}


def test_without_the_extra_there_is_no_page_and_no_link(
    fake_store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "available", lambda: False)
    page = study.report(of_objectives(fake_store), tmp_path / "out", "some", [], NOTHING)
    assert not (page.parent / "explore.html").exists() and "explore.html" not in page.read_text(encoding="utf-8")
    assert 'href="gallery.html"' in page.read_text(encoding="utf-8") and (page.parent / "gallery.html").exists()


# ---- the gallery --------------------------------------------------------------------------------------------------------


def test_sliders_are_where_cells_differ(fake_store: FakeStore) -> None:
    steps = read_points(read_runs(of_samplers(fake_store))).study
    (slider,) = slid = gallery.sliders(steps)
    assert (slider.knob, slider.places) == ("steps", (5, 9, 19, 20, 50, 99))
    columns = gallery.drawn(steps, slid)
    assert len(columns) == 12 and {c.column for c in columns} == {"ddim", "euler", "heun", "dpmpp_2m"}
    assert gallery.sliders(read_points(read_runs(of_objectives(FakeStore(fake_store.root / "b")))).study) == []


def test_a_cell_without_guidance_is_in_every_column(fake_store: FakeStore) -> None:
    guided = read_points(read_runs(of_guidance(fake_store))).study
    slid = gallery.sliders(guided)
    found = {(c.column, c.point, c.at[0]) for c in gallery.drawn(guided, slid)}
    assert found == {
        ("everywhere", "w1", 1.0), ("everywhere", "w2", 2.0), ("everywhere", "w5", 5.0),
        ("in 0.5–5", "w1", 1.0), ("in 0.5–5", "w2in", 2.0), ("in 0.5–5", "w5in", 5.0),
    }  # fmt: skip


# ---- in a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of samplers, where x and y both have a better side; one cell has another protocol than the rest."""
    store = FakeStore(tmp_path_factory.mktemp("explored") / "store")
    folders = [*of_samplers(store), cell(store, "odd", 1.0, sampler="plms", steps=10, resize="bicubic")]
    unmeasured = store.root / "scores/shapes-odd/scores.json"
    scores = json.loads(unmeasured.read_text(encoding="utf-8"))
    del scores["scores"]["precision"]
    write_json(unmeasured, scores)
    return study.report(folders, store.root / "page", "some", [], NOTHING)


DOTS = """[...document.querySelectorAll('#chart svg .mark-symbol.role-mark path')].map(e => {
  const box = e.getBoundingClientRect(), datum = e.__data__.datum; return [datum.id, box.x + box.width / 2, box.y + box.height / 2]; })"""
READY = "view && document.querySelectorAll('#table tbody tr').length === 13"
ROWS = "[...document.querySelectorAll('#table tbody tr')].map(row => row.dataset.id)"
STRIPS = "[...document.querySelectorAll('#samples .strip')].map(row => row.dataset.id)"


def places(chromium: Browser) -> dict[str, tuple[float, float]]:
    return {id_: (x, y) for id_, x, y in chromium.run(DOTS)}


def pareto(page: Path, x: str, y: str) -> set[str]:
    """Cells of the common protocol that no other one equals in both and beats in one; both are better lower."""
    own = {
        p["cell"]: (p["values"][x]["value"], p["values"][y]["value"])
        for p in data_of(page.with_name("explore.html"))["points"]
        if not p["values"][y]["other"]
    }
    return {
        name for name, (a, b) in own.items() if not any(c <= a and d <= b and (c < a or d < b) for c, d in own.values())
    }  # fmt: skip


@needs_vega
@needs_browser
@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_a_study_can_be_asked(chromium: Browser, page: Path, size: tuple[int, int], scheme: str) -> None:
    file = page.parent / "explore.html"
    assert file.stat().st_size <= LIMIT
    chromium.open(file.as_uri(), size, scheme)
    chromium.wait(READY)
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")  # nothing hangs out sideways
    dark = chromium.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    front = chromium.run("document.getElementById('front').textContent")
    assert set(front.removeprefix("On the front: ").rstrip(".").split("; ")) == pareto(
        page, "cost.evaluations", "score.fid"
    )

    chromium.run("document.getElementById('chart').scrollIntoView({behavior: 'instant'})")
    at = places(chromium)
    chromium.click(*at["ddim5"])  # a point
    chromium.wait("chosen.size > 0")
    assert chromium.run(ROWS) == chromium.run(STRIPS) and chromium.run(ROWS)[0] in ("ddim5", "euler5")

    far = {id_: place for id_, place in at.items() if id_ in ("heun50", "odd")}  # 99 evaluations; another protocol
    (x, y) = far["heun50"]
    chromium.drag((x - 12, y - 12), (x + 12, y + 12))  # a rectangle
    chromium.wait("chosen.has('heun50')")
    brushed = {id_ for id_, (a, b) in at.items() if abs(a - x) <= 12 and abs(b - y) <= 12}
    assert set(chromium.run(ROWS)) == set(chromium.run(STRIPS)) == brushed
    assert chromium.run("document.getElementById('count').textContent") == f"{len(brushed)} of 13 chosen."
    style = chromium.run("document.querySelector('#samples .still').style.backgroundImage")
    assert style == 'url("explore/heun50s.png")' and (page.parent / "explore/heun50s.png").is_file()

    chromium.run("document.getElementById('clear').click()")
    chromium.wait("chosen.size === 0 && document.querySelectorAll('#table tbody tr').length === 13")
    chromium.choose("y", "score.precision")
    chromium.wait("document.getElementById('count').textContent === '12 points. 1 more without precision.'")
    chromium.choose("x", "score.fid")
    chromium.wait("document.querySelector('#chart svg').textContent.includes('precision (more is better)')")
    assert chromium.run("document.querySelector('#table th:nth-child(2)').textContent") == "FID"
    chromium.choose("x", "knob.sampler")  # words on an axis
    chromium.wait("document.getElementById('front').textContent.startsWith('No front') && view.scale('x').bandwidth")
    assert chromium.messages == []


@needs_vega
@needs_browser
def test_the_other_protocol_is_hollow_and_on_no_front(chromium: Browser, page: Path) -> None:
    chromium.open((page.parent / "explore.html").as_uri())
    chromium.wait(READY)
    fills = chromium.run("Object.fromEntries([...document.querySelectorAll('#chart svg .mark-symbol.role-mark path')]"
                         ".map(e => [e.__data__.datum.id, e.getAttribute('fill')]))")  # fmt: skip
    assert fills["odd"] == "transparent" and "transparent" not in {v for k, v in fills.items() if k != "odd"}
    assert "plms" not in chromium.run("document.getElementById('front').textContent")  # its FID of 1 would be
    assert "resize: bicubic" in chromium.run("document.querySelector('tr[data-id=odd] td.differs').title")


@needs_browser
@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_gallery_s_slider_moves_the_columns(
    chromium: Browser, page: Path, size: tuple[int, int], scheme: str
) -> None:
    chromium.open((page.parent / "gallery.html").as_uri(), size, scheme)
    shown = "[...document.querySelectorAll('#gallery thead th[data-id]')].map(th => th.dataset.id)"
    assert set(chromium.run(shown)) == {"ddim50", "euler50", "heun50", "dpmpp_2m50", "odd"}  # the most evaluations
    chromium.choose("slider-steps", "0")
    assert set(chromium.run(shown)) == {"ddim5", "euler5", "heun5", "dpmpp_2m5", "odd"}
    away = chromium.run("[...document.querySelectorAll('#gallery .away')].map(e => e.textContent)")
    assert away == ["evaluations 9", "evaluations 10"]  # heun's least, and the only one of plms
    tiles = chromium.run("[...document.querySelectorAll('#gallery tbody tr:first-child .still')].map(e => e.ariaLabel)")
    assert len(tiles) == 5 and len({text.partition(" · ")[2] for text in tiles}) == 1  # one noise a row
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth") and chromium.messages == []


@needs_browser
def test_points_of_the_page_can_be_followed(chromium: Browser, page: Path) -> None:
    chromium.open(page.as_uri())
    circle = (
        "const c = document.querySelector('.plot a circle'); c.scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    middle = "const box = c.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]"
    x, y = chromium.run(f"(() => {{ {circle}; {middle}; }})()")
    chromium.click(x, y)
    chromium.wait("location.hash.startsWith('#cell-')")
    assert chromium.messages == []
