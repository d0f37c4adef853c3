"""Every `experiment=paper/…`: composed, completed, resolved and planned without data; headers, page and sizes beside the code."""

import re
from pathlib import Path

import pytest

from ldmlab.bench.paper import FOLDER, PAGE, SPEED, UTILISATION, Bill, bill, page, planned, yaml_text
from ldmlab.bench.record import Report
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError, DataError, WeightsError
from ldmlab.pipeline.run import execute, prepare
from ldmlab.reports.paper_rows import rows

APART = {  # printed sizes that are not what the architecture counts, rounded
    "churches_ldm8", "imagenet_ldm4", "imagenet_ldm4_g125", "imagenet_ldm4_g150", "imagenet_f1",  # printed without decimals
    "imagenet_ldm8_g_2900k", "imagenet_ldm8_g_4800k", "sr_ldm4_big",  # networks that are not published
    "imagenet_f4", "celeba_f16", "layout_coco_ldm8", "layout_coco_ldm4", "layout_openimages_ldm4", "layout_openimages_ldm4_512",
}  # fmt: skip


def check(made: Bill) -> None:
    """The header of its yaml is what the code says, and its size what is printed, or the row says why not."""
    file = FOLDER / f"{made.row.name}.yaml"
    text = file.read_text(encoding="utf-8")
    assert text == yaml_text(made, text), f"{file.name} is older than the code: python -m ldmlab.bench.paper"
    if made.row.printed:
        assert made.row.agrees(made.millions) != bool(made.row.differs), (made.row.name, made.millions)


@pytest.mark.parametrize("name", ["celebahq_ldm4", "ae_vq_f4", "layout_coco_ldm8"])
def test_a_row_is_planned_and_its_header_is_what_the_code_says(name: str) -> None:
    check(bill(name))


@pytest.mark.slow
def test_every_row_is_planned_and_its_header_is_what_the_code_says() -> None:
    """One test, so that networks which rows share are counted once."""
    made = [bill(name) for name in rows()]
    for each in made:
        check(each)
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(made, text), "python -m ldmlab.bench.paper"


def test_each_row_has_a_file_and_each_file_a_row() -> None:
    assert set(rows()) == {file.stem for file in FOLDER.glob("[!_]*.yaml")}
    assert {name for name, row in rows().items() if row.differs} == APART
    tables = {table for row in rows().values() for table in row.table.split(", ")}
    assert tables == {"1", "2", "3", "5", "6", "7", "8", "9", "10", "11", "13", "14"}


def test_operations_are_those_that_are_known() -> None:
    """LDM-8's forward pass has 114 GFLOP (docs/paper.md#sizes-of-the-networks): three of them an image, and 200 a sample."""
    made = bill("imagenet_ldm8_2900k")
    assert made.images == 185_600_000 and made.millions == pytest.approx(394.98, abs=0.005)
    encoded = 1_281_167 * 0.5e12  # at most, once an image
    assert made.flops["denoiser"] == pytest.approx(3 * 114e9 * made.images, rel=0.01, abs=encoded)
    assert made.flops["samples"] == pytest.approx(50_000 * 200 * 114e9, rel=0.03)
    assert made.days() == pytest.approx(sum(made.flops.values()) / (SPEED * UTILISATION) / 86_400)


def test_a_row_without_its_data_is_planned_and_not_run(tmp_path: Path) -> None:
    plan = prepare(planned("celebahq_ldm4", str(tmp_path)))
    assert any("no folder celebahq here" in note for note in plan.notes)
    with pytest.raises(DataError, match=r"data\.root"):
        plan.resolved.data[0]
    words = ["experiment=paper/celebahq_ldm4", f"store={tmp_path}"]
    with pytest.raises(DataError, match=r"data\.root=celebahq"):
        execute(load(words), "")
    assert not list(tmp_path.glob("autoencoder/*"))


def test_the_start_of_a_fine_tuning_must_be_there(tmp_path: Path) -> None:
    """With data at hand, the weights are asked for too."""
    little = ["data=shapes", "eval=shapes", "debug=tiny", "data.train_images=8", "data.val_images=4", "ae.weights=null"]
    words = ["experiment=paper/inpaint_big_tuned", *little, f"store={tmp_path}"]
    with pytest.raises(WeightsError, match=r"ldm.start=inpaint_big.safetensors: no such file"):
        prepare(load(words))


def test_bench_prints_the_rows_that_are_asked_for() -> None:
    from ldmlab.bench.paper import compare_paper

    words = ["compare=paper", "bench.family=[celebahq_ldm4]"]
    found = compare_paper(load(words).cfg, words, None)  # type: ignore[arg-type]
    assert isinstance(found, Report) and "274.06 M" in found.text() and re.search(r"35 % of 495 TFLOP/s", found.text())
    with pytest.raises(ConfigError, match=r"bench\.family: vqgan is no row"):
        words = ["compare=paper", "bench.family=[vqgan]"]
        compare_paper(load(words).cfg, words, None)  # type: ignore[arg-type]
