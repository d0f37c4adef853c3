import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, WARNING, FakeStore, little_pictures

from ldmlab.errors import DataError
from ldmlab.reports.collect import read_runs
from ldmlab.reports.document import write
from ldmlab.reports.numbers import seconds, shown
from ldmlab.reports.pictures import by_class, same_seeds
from ldmlab.reports.run import report
from ldmlab.reports.tables import samples_table

VOID = {"meta", "link", "img", "br", "hr", "source", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers ids, addresses, text and the words inside each row of a table."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.raw = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(self.raw)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(given["id"] or "")
        if tag == "img":
            self.images.append(given)
        self.addresses += [given[name] or "" for name in ("href", "src", "srcset") if name in given]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1] if self.open else None}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style",):
            self.text += data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole run."""
    root = tmp_path_factory.mktemp("page")
    return report([FakeStore(root / "store").finished()], root / "out")


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path)


def test_the_page_needs_no_network_and_no_script(page: Page) -> None:
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for address in page.addresses:
        assert address.startswith(("data:", "#", "figures/", "table.csv", "report.md")), address[:80]
    style = re.search(r"<style>(.*?)</style>", page.raw, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    for data in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page.raw):
        drawing = base64.b64decode(data).decode()
        links = re.findall(r'(?:href|src)="([^"]+)"', drawing) + re.findall(r"url\(([^)]+)\)", drawing)
        assert all(link.startswith("#") for link in links)


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    missing = {a[1:] for a in page.addresses if a.startswith("#")} - set(page.ids)
    assert missing == set()


def test_linked_files_exist(path: Path, page: Page) -> None:
    for address in page.addresses:
        if not address.startswith(("data:", "#")):
            assert (path.parent / address).is_file(), address
    names = {file.stem for file in (path.parent / "figures").iterdir()}
    assert {"fid-over-training", "denoiser-loss", "autoencoder-psnr", "autoencoder-kl"} <= names
    for name in names:
        assert all((path.parent / "figures" / f"{name}.{kind}").is_file() for kind in ("svg", "png", "csv"))


def test_every_stage_number_class_warning_and_seed_is_there(fake_store: FakeStore, tmp_path: Path) -> None:
    folder = fake_store.finished()
    page = Page(report([folder], tmp_path / "out"))
    (run,) = read_runs([folder])
    for stage in run.stages:
        assert stage.id in page.text and stage.place in page.text and stage.what in page.text
        for name, score in stage.scores.items():
            factor = {"kid": 1000.0, "label_agreement": 100.0}.get(name, 1.0)
            for printed in shown(score, factor):
                assert printed in page.text, (stage.place, name, printed)
    for word in [
        *CLASSES,
        WARNING,
        run.command,
        "8c1d44e0",
        "multipliers: [1, 2, 4]",
        "image 9 · drop · seed 9",
        "1 min 48 s",
    ]:
        assert word in page.text
    assert all(image.get("alt") for image in page.images)


def test_sections_come_in_the_order_of_a_results_section(page: Page) -> None:
    order = ["answer", "scores", "samples", "reconstructions", "training", "cost", "plan", "protocol"]
    assert [id_ for id_ in page.ids if id_ in order] == order


def test_equal_runs_give_equal_bytes(fake_store: FakeStore, tmp_path: Path) -> None:
    folder = fake_store.finished()
    first, second = report([folder], tmp_path / "a" / "x").parent, report([folder], tmp_path / "b").parent
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_a_second_report_replaces_the_first_and_spares_foreign_files(fake_store: FakeStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report([fake_store.finished()], out)
    (out / "figures" / "mine.png").write_bytes(b"mine")
    report([fake_store.run([fake_store.entry("data", "d1", fake_store.root / "data/d", "64 px", 1.0)], "other")], out)
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["mine.png"]
    assert not list(out.rglob(".*"))


def test_nothing_is_written_when_a_result_is_missing(fake_store: FakeStore, tmp_path: Path) -> None:
    folder = fake_store.finished()
    (fake_store.root / "scores/shapes-a25c/scores.json").unlink()
    with pytest.raises(DataError, match=r"shapes-a25c/scores\.json: no such file.*python src/train\.py data=shapes"):
        report([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write(tmp_path, {"index.html": b"old"}, "index.html")
    with pytest.raises(TypeError):
        write(tmp_path, {"index.html": None}, "index.html")  # type: ignore[dict-item]
    assert (tmp_path / "index.html").read_bytes() == b"old" and not list(tmp_path.glob(".index*"))


def test_hostile_names_are_shown_and_never_run(fake_store: FakeStore, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"&{{7*7}}"
    stages = [fake_store.autoencoder(), *fake_store.snapshot("a", 2000, 90.0, class_names=[evil, *CLASSES[1:]])]
    stages[0]["what"] = evil
    folder = fake_store.run(stages, name=evil, title=evil, command=evil, machine={evil: evil}, config={evil: evil})
    page = Page(report([folder], tmp_path / "out"))
    assert "script" not in page.tags and evil in page.text


def test_an_unfinished_run_is_shown_as_such(fake_store: FakeStore, tmp_path: Path) -> None:
    waiting = fake_store.entry("scores", "ff00", fake_store.root / "scores/none", "FID", None, state="will run")
    stages = [fake_store.autoencoder(), fake_store.denoiser(points=82, state="resumes at 41 %"), waiting]
    page = Page(report([fake_store.run(stages)], tmp_path / "out"))
    assert "Not finished." in page.text and "resumes at 41 %" in page.text and "will run" in page.text
    assert "figure-denoiser-loss" in page.ids


def test_a_finished_run_does_not_say_unfinished(page: Page) -> None:
    assert "Not finished" not in page.text


def test_the_first_stage_alone(fake_store: FakeStore, tmp_path: Path) -> None:
    page = Page(report([fake_store.run([fake_store.autoencoder()])], tmp_path / "out"))
    assert "the first stage alone, no denoiser" in page.text
    assert "28.4" in page.text and page.ids.count("reconstructions") == 1 and "samples" not in page.ids
    assert "Generated images" not in page.text


def test_reconstructions_as_a_stage_of_their_own(fake_store: FakeStore, tmp_path: Path) -> None:
    entry = fake_store.autoencoder()
    own = fake_store.root / "reconstructions/kl_f4-99ee"
    own.mkdir(parents=True)
    for name in ("scores.json", "reconstructions.png"):
        (fake_store.root / "autoencoder/kl_f4-4ab07e11" / name).rename(own / name)
    folder = fake_store.run([entry, fake_store.entry("reconstructions", "99ee", own, "128 images", 3.0)])
    page = Page(report([folder], tmp_path / "out"))
    assert "28.4" in page.text and "reconstructions/kl_f4-99ee" in page.text and "reconstructions" in page.ids
    assert "KL f=4 c=3 · 1.2 M on validation images." in page.text and "figure-autoencoder-psnr" in page.ids
    (own / "scores.json").unlink()
    with pytest.raises(DataError, match=r"kl_f4-99ee/scores\.json: no such file"):
        report([folder], tmp_path / "out")


def test_large_seeds_are_listed_but_not_in_captions(
    fake_store: FakeStore, tmp_path: Path, edit: Callable[..., None]
) -> None:
    folder = fake_store.run(fake_store.snapshot("a", 2000, 90.0))
    seeds = [2**62 + i for i in range(80)]
    edit(fake_store.root / "samples/ddim50-a5a/conditions.json", lambda raw: raw.update(seed=seeds))
    page = Page(report([folder], tmp_path / "out"))
    assert f"seed {2**62 + 9}" in page.text and "images 9, 19, 29" in page.text and f"seeds {2**62}" not in page.text


def test_an_autoencoder_without_training_has_no_curves(fake_store: FakeStore, tmp_path: Path) -> None:
    stages = [fake_store.autoencoder()]
    for name in ("metrics.jsonl", "reconstructions.png"):
        (fake_store.root / "autoencoder/kl_f4-4ab07e11" / name).unlink()
    page = Page(report([fake_store.run(stages)], tmp_path / "out"))
    assert "training" not in page.ids and "reconstructions" not in page.ids


def test_a_run_without_labels(fake_store: FakeStore, tmp_path: Path) -> None:
    page = Page(report([fake_store.run(fake_store.snapshot("a", 2000, 90.0, labels=False))], tmp_path / "out"))
    assert "In order of seed" in page.text and "By class" not in page.text and "label agreement" not in page.text
    assert "seeds 0–7" in page.text


def test_a_study_says_what_differs_and_marks_the_unequal_card(fake_store: FakeStore, tmp_path: Path) -> None:
    shared = fake_store.autoencoder()
    folders = []
    for i, (fid, card) in enumerate([(20.0, None), (30.0, None), (25.0, {"steps": 20})]):
        stages = [shared, *fake_store.snapshot(f"r{i}", 40000, fid, card=card)]
        folders.append(fake_store.run(stages, f"id{i}", f"run{i}", config={"seed": 0, "ldm": {"width": 32 * (i + 1)}}))
    path = report(folders, tmp_path / "out", "Width")
    page = Page(path)
    assert "3 runs, which differ in ldm.width." in page.text and "Width" in page.text
    assert "≠a" in page.text and "steps: 20 (others: 50)" in page.text
    assert "Same seeds, run by run" in page.text
    assert len(page.ids) == len(set(page.ids))  # the shared stage is listed thrice, anchored once
    text = (path.parent / "report.md").read_text()
    assert text.startswith("# Width\n") and "steps: 20" in text
    table = samples_table(read_runs(folders))
    assert table is not None and table.rows[0].cells[0].best and "<strong>" not in text


def test_pictures_are_the_stored_ones_bit_for_bit(fake_store: FakeStore) -> None:
    from io import BytesIO

    from PIL import Image

    (run,) = read_runs([fake_store.run(fake_store.snapshot("a", 2000, 90.0))])
    samples = run.stage("samples")
    assert samples is not None
    grid = by_class(samples.pictures, "s")
    assert [strip.label for strip in grid.rows] == CLASSES and grid.cell == 96 and grid.pixelated
    for strip in grid.rows:
        for tile in strip.tiles:
            shown_HWC = np.asarray(Image.open(BytesIO(base64.b64decode(tile.uri.split(",")[1]))))
            assert np.array_equal(shown_HWC, samples.pictures.images_NHWC[tile.index])
            assert samples.pictures.class_name(samples.pictures.labels[tile.index]) == strip.label


def test_large_pictures_are_averaged_down_and_the_page_says_so(fake_store: FakeStore, tmp_path: Path) -> None:
    stages = fake_store.snapshot("a", 2000, 90.0, little_pictures(12, size=256))
    page = Page(report([fake_store.run(stages)], tmp_path / "out"))
    assert "Shown at 1/2 size." in page.text and "Enlarged" not in page.text


def test_same_seeds_joins_by_seed_and_label_not_by_place(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    a = fake_store.run(fake_store.snapshot("a", 1, 90.0), "a", "a")
    b = fake_store.run(fake_store.snapshot("b", 1, 80.0), "b", "b")

    def turn(raw: dict[str, list[int]]) -> None:
        raw["seed"].reverse()
        raw["label"].reverse()

    edit(fake_store.root / "samples/ddim50-b5a/conditions.json", turn)
    entries = [(run.label, run.stages[0].pictures, run.label) for run in read_runs([a, b])]
    grid = same_seeds(entries)
    assert grid is not None
    first, second = grid.rows
    assert [t.seed for t in first.tiles] == [t.seed for t in second.tiles] == list(range(8))
    assert [t.index for t in second.tiles] == [79 - i for i in range(8)]
    assert same_seeds(entries[:1]) is None


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (8.2, "8.2 s"), (59.96, "60 s"), (108.3, "1 min 48 s"), (7500, "2 h 5 min")]
)
def test_durations(value: float | None, text: str) -> None:
    assert seconds(value) == text
