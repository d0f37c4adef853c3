"""What comes from outside reports: metrics that declare themselves, stages that report themselves, conditions of samples."""

import ast
import base64
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeStore, little_pictures, score, write_json
from PIL import Image
from test_page import Page

from ldmlab.errors import DataError
from ldmlab.metrics.standard import STANDARD
from ldmlab.pipeline.sheets import tiled
from ldmlab.reports.collect import read_run, read_runs
from ldmlab.reports.document import markdown
from ldmlab.reports.pictures import by_class, same_seeds
from ldmlab.reports.publish import export_samples, headline
from ldmlab.reports.run import report
from ldmlab.reports.tables import samples_table, shown_table

FID = {"label": "FID", "better": "lower", "unit": "", "settings": {"covariance": "unbiased"}}
SFID = {"label": "spatial FID", "better": "lower", "unit": "", "settings": {"layer": 7}}


def declare(store: FakeStore, edit: Callable[..., None], id_: str, metrics: dict[str, Any], **scores: Any) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["metrics"] = metrics
        raw["scores"].update(scores)

    edit(store.root / f"scores/shapes-{id_}5c/scores.json", change)


def two_runs(store: FakeStore) -> list[Path]:
    return [store.run(store.snapshot(f"r{i}", 40000, fid), f"i{i}", f"run{i}") for i, fid in enumerate((20.0, 30.0))]


def test_a_metric_is_called_what_it_declares(fake_store: FakeStore, edit: Callable[..., None], tmp_path: Path) -> None:
    folders = two_runs(fake_store)
    share = {"label": "text agreement", "better": "higher", "unit": "%", "settings": {}}
    for i, value in enumerate((0.25, 0.75)):
        declare(fake_store, edit, f"r{i}", {"fid": FID, "clip": share}, clip=score(value, 0.01))
    table = samples_table(read_runs(folders))
    assert table is not None and table.metrics[-1].head == "text agreement (%) ↑"
    assert [(row.cells[-1].text, row.cells[-1].best) for row in table.rows] == [("25.0", False), ("75.0", True)]
    page = Page(report(folders[:1], tmp_path / "out"))
    assert "text agreement (%) ↑" in page.text and "25.0" in page.text
    assert "text agreement 0.25 [0.24, 0.26]" in headline(folders[0])


@pytest.mark.parametrize(("samples", "biased"), [(2000, True), (10_000, False)])
def test_intervals_say_what_they_cover(
    fake_store: FakeStore, edit: Callable[..., None], tmp_path: Path, samples: int, biased: bool
) -> None:
    folder = fake_store.run(fake_store.snapshot("r0", 40000, 20.0, card={"samples": samples}), "i0")
    metrics = {name: STANDARD[name].declaration() for name in ("fid", "fid_infinity", "is", "kid")}
    declare(fake_store, edit, "r0", metrics, fid_infinity=score(18.0, 0.4))
    page = Page(report([folder], tmp_path / "out"))
    html, text = page.raw, (tmp_path / "out/report.md").read_text()
    for declared in metrics.values():
        assert html.count(f'<span class="interval">[{declared["interval"]}]</span>') >= 1  # in the head
        assert text.count(str(declared["covers"])) == 1  # once per table, not per cell
    assert "| FID ↓ | FID∞ ↓ | IS ↑ | KID (×10³) ↓ |" in text  # side by side
    words = "FID, IS: over images at this N; FID∞: of the distance at infinitely many samples"
    assert f"95 % intervals. {words}." in page.text  # under the numbers that are read first
    assert f"   95 % intervals          {words}; KID: over samples" in headline(folder)  # in the terminal
    assert ("FID and FID∞ differ because FID of 2 000 samples is biased upwards" in text) == biased


def test_intervals_that_are_all_alike_are_named_once_in_the_head(
    fake_store: FakeStore, edit: Callable[..., None], tmp_path: Path
) -> None:
    folder = fake_store.run(fake_store.snapshot("r0", 40000, 20.0), "i0")
    declare(fake_store, edit, "r0", {name: STANDARD[name].declaration() for name in ("fid", "is")})
    html = report([folder], tmp_path / "out").read_text()
    assert html.count("[95 % interval over images at this N]") == 1 and "[over images at this N]" not in html


def test_metrics_that_nobody_knows_keep_the_order_in_which_they_were_measured(
    fake_store: FakeStore, edit: Callable[..., None]
) -> None:
    folder = fake_store.run(fake_store.snapshot("r0", 40000, 20.0), "i0")
    names = ["zeta", "alpha", "omega", "beta", "gamma"]
    declare(fake_store, edit, "r0", {}, **{name: score(1.0, 0.1) for name in names})
    table = samples_table(read_runs([folder]))
    assert table is not None and [metric.key for metric in table.metrics][-5:] == names


def test_another_metric_leaves_the_others_comparable(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    folders = two_runs(fake_store)
    declare(fake_store, edit, "r0", {"fid": FID})
    declare(fake_store, edit, "r1", {"fid": FID, "sfid": SFID}, sfid=score(31.4, 0.5))
    table = samples_table(read_runs(folders))
    assert table is not None and not any(cell.note for row in table.rows for cell in row.cells)
    assert table.rows[0].cells[0].best


def test_settings_of_a_metric_keep_its_own_column_apart_and_no_other(
    fake_store: FakeStore, edit: Callable[..., None]
) -> None:
    folders = two_runs(fake_store)
    kid = {"label": "KID", "better": "lower", "unit": "", "settings": {"subsets": 100}}
    declare(fake_store, edit, "r0", {"fid": FID, "kid": kid})
    declare(fake_store, edit, "r1", {"fid": FID, "kid": {**kid, "settings": {"subsets": 50}}})
    table = samples_table(read_runs(folders))
    assert table is not None
    marked = {metric.key for row in table.rows for metric, c in zip(table.metrics, row.cells, strict=True) if c.note}
    assert marked == {"kid"}
    said = [note.text for note in table.notes if note.kind == "comparability"]
    assert said == ["Not comparable with the other rows. subsets: 50 (others: 100)."]


def test_fields_of_one_metric_on_an_older_card_are_its_settings(fake_store: FakeStore) -> None:
    stages = [*fake_store.snapshot("r0", 1, 20.0, card={"kid": "100 subsets"})]
    other = [*fake_store.snapshot("r1", 1, 30.0, card={"kid": "50 subsets"})]
    table = samples_table(read_runs([fake_store.run(stages, "a", "a"), fake_store.run(other, "b", "b")]))
    assert table is not None
    assert [bool(cell.note) for cell in table.rows[1].cells] == [m.key == "kid" for m in table.metrics]


def own_stage(store: FakeStore, **told: Any) -> Path:
    folder = store.root / "probe" / "linear-77aa"
    write_json(folder / "report.json", told)
    Image.fromarray(little_pictures(1)[0]).save(folder / "map.png")
    return store.run([store.autoencoder(), store.entry("probe", "77aa", folder, "linear probe", 3.0)])


def test_a_stage_from_outside_is_on_the_page(fake_store: FakeStore, tmp_path: Path) -> None:
    table = {"columns": ["class", "accuracy"], "rows": [["circle", 0.75], ["ring", None]]}
    text = "A linear classifier of the latent."
    folder = own_stage(fake_store, title="Linear probe", text=text, table=table, pictures=["map.png"])
    path = report([folder], tmp_path / "out")
    page, written = Page(path), (path.parent / "report.md").read_text()
    assert (
        "section-77aa" in page.ids and "Linear probe" in page.text and "A linear classifier of the latent." in page.text
    )
    assert "accuracy" in page.text and "0.75" in page.text and "probe/linear-77aa" in page.text
    assert any(image["alt"] == "map" for image in page.images)
    assert "## Linear probe" in written and "| circle | 0.75 |" in written and "| ring | – |" in written
    assert (path.parent / "pictures/probe-map.png").read_bytes() == (
        fake_store.root / "probe/linear-77aa/map.png"
    ).read_bytes()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"table": {"columns": ["a", "b"], "rows": [["1"]]}}, "each row as long as the columns"),
        ({"table": {"columns": ["a"]}}, "needs 'columns' and 'rows'"),
        ({"pictures": ["../other.png"]}, "'../other.png' is not a file of"),
    ],
)
def test_a_stage_that_reports_nonsense_is_refused(fake_store: FakeStore, told: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_run(own_stage(fake_store, **told))


def conditioned(store: FakeStore, edit: Callable[..., None]) -> tuple[Path, np.ndarray]:
    """Twelve samples, each described; the first eight drawn from a picture."""
    folder = store.run(store.snapshot("a", 2000, 90.0, little_pictures(12), labels=False))
    samples = store.root / "samples/ddim50-a5a"
    maps_NHWC = little_pictures(8, seed=9)
    np.save(samples / "conditions-pictures.npy", maps_NHWC)
    edit(samples / "conditions.json", lambda raw: raw.update(describe=[f"a disc, number {i}" for i in range(12)]))
    return folder, maps_NHWC


def test_the_condition_stands_beside_the_sample(
    fake_store: FakeStore, edit: Callable[..., None], tmp_path: Path
) -> None:
    folder, maps_NHWC = conditioned(fake_store, edit)
    record = read_run(folder).stage("samples")
    assert record is not None
    tiles = [tile for row in by_class(record.pictures, "s").rows for tile in row.tiles]
    assert [tile.text for tile in tiles] == [f"a disc, number {i}" for i in range(12)]
    for tile, map_HWC in zip(tiles, maps_NHWC, strict=False):
        shown_HWC = np.asarray(Image.open(BytesIO(base64.b64decode(tile.condition_uri.split(",")[1]))))
        assert np.array_equal(shown_HWC, map_HWC)
    assert all(tile.condition_uri == "" for tile in tiles[8:])
    page = Page(report([folder], tmp_path / "out"))
    assert page.text.count("a disc, number 3") >= 2  # under the picture, and in the list of conditions
    shown = {image["src"] for image in page.images}
    assert {tile.condition_uri for tile in tiles[:8]} <= shown


def test_equal_seeds_of_unequal_conditions_are_not_matched(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    runs = []
    for name in ("a", "b"):
        folder = fake_store.run(fake_store.snapshot(name, 1, 90.0, little_pictures(4), labels=False), name, name)
        texts = ["one", "two", name, name]
        edit(fake_store.root / f"samples/ddim50-{name}5a/conditions.json", lambda raw, t=texts: raw.update(describe=t))
        runs.append(read_run(folder))
    grid = same_seeds([(run.label, run.stages[0].pictures, run.label) for run in runs])
    assert grid is not None and [[tile.index for tile in row.tiles] for row in grid.rows] == [[0, 1], [0, 1]]


def test_conditions_that_are_no_pictures_are_refused(fake_store: FakeStore, edit: Callable[..., None]) -> None:
    folder, maps_NHWC = conditioned(fake_store, edit)
    np.save(fake_store.root / "samples/ddim50-a5a/conditions-pictures.npy", maps_NHWC.astype(np.float32))
    with pytest.raises(DataError, match=r"conditions-pictures\.npy must be uint8 \[N, H, W, 3\]; got float32"):
        read_run(folder)


def test_exported_samples_carry_their_description(
    fake_store: FakeStore, edit: Callable[..., None], tmp_path: Path
) -> None:
    folder, _ = conditioned(fake_store, edit)
    said = export_samples(folder, tmp_path)
    assert "12 images" in said and "00000.png" in said
    assert '"description": "a disc, number 11"' in (tmp_path / "samples.json").read_text()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "00011.png")), little_pictures(12)[11])


def test_a_sheet_holds_every_image_where_it_belongs() -> None:
    images = little_pictures(5, size=8)
    sheet = tiled(images, 3, gap=2, ground=255)
    assert sheet.shape == (18, 28, 3)
    for i, image in enumerate(images):
        y, x = i // 3 * 10, i % 3 * 10
        assert np.array_equal(sheet[y : y + 8, x : x + 8], image)
    assert (sheet[8:10] == 255).all() and (sheet[:, 8:10] == 255).all() and (sheet[10:, 20:] == 255).all()


def test_a_table_in_markdown_has_the_marks_of_its_notes(fake_store: FakeStore) -> None:
    stages = [*fake_store.snapshot("a", 1, 20.0), *fake_store.snapshot("b", 2, 10.0, card={"steps": 9})]
    more = fake_store.snapshot("c", 3, 9.0)
    table = samples_table(read_runs([fake_store.run([*stages, *more])]))
    assert table is not None
    text = "\n".join(markdown(shown_table(table)))
    assert "(a) |" in text and "- (a) Not comparable with the other rows. steps: 9 (others: 50)." in text


def test_no_class_of_reports_has_a_namesake() -> None:
    src = Path(__file__).resolve().parents[2] / "src/ldmlab"
    names = {
        file: [node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]
        for file in src.rglob("*.py")
    }
    counts = Counter(name for each in names.values() for name in each)
    own = {name for file, each in names.items() if file.parent.name == "reports" for name in each}
    assert not {name for name in own if counts[name] > 1}
