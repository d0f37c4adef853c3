"""`report.py paper=true`: the paper's numbers, ours beside them, and what keeps them apart."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ldmlab.config.compose import load
from ldmlab.reports.paper_rows import rows
from ldmlab.reports.paper_table import runs_of, text

ROW = "celebahq_ldm4"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """What a run as the row says would have in its run.json."""
    return OmegaConf.to_container(load([f"experiment=paper/{ROW}"]).cfg, resolve=True)  # type: ignore[return-value]


def shown(store: Any, **changes: Any) -> list[str]:
    """The lines of the row in the table, of one run that differs in these things; cells are apart by two spaces."""
    store.finished(choices={"experiment": f"paper/{ROW}"}, **changes)
    lines = text(store.root).splitlines()
    first = next(n for n, line in enumerate(lines) if "CelebA-HQ, LDM-4 (" in line)
    return lines[first : first + 3]


def test_rows_say_what_is_printed() -> None:
    known = rows()
    assert known["churches_ldm8"].scores == {"fid": "4.02", "precision": "0.64", "recall": "0.52"}
    assert known["imagenet_ldm4_g150"].scored == "FID 3.60, IS 247.67 ± 5.59, precision 0.87, recall 0.48"
    assert known["ae_vq_f4_noattn"].scores["rfid"] == "1.06" and known["ae_vq_f4"].scores["rfid"] == "0.58"
    assert known["ae_kl_f32_c16"].scores["rfid"] == "7.3" and known["imagenet_f8"].scores == {"fid": "31", "is": "41.9"}


def test_an_empty_store_has_the_papers_column_and_what_to_run(tmp_path: Path) -> None:
    said = text(tmp_path)
    for name, row in rows().items():
        (line,) = (line for line in said.splitlines() if line.endswith(f"experiment=paper/{name}"))
        assert row.scored in line and "not run" in line
    assert f"{len(rows())} rows not run" in said and "python src/train.py experiment=paper/" in said


def test_a_run_stands_beside_its_row(fake_store: Any, config: dict[str, Any]) -> None:
    fid, precision, recall = shown(fake_store, config=config)
    assert "5.11" in fid and "12.83 [" in fid and fid.endswith("equal as printed, which leaves out sampler.eta")
    assert "precision" in precision and "0.72" in precision and "recall" in recall and "0.49" in recall
    assert "58 rows not run" in text(fake_store.root)


def test_what_differs_is_named(fake_store: Any, config: dict[str, Any]) -> None:
    """Options that decide a score, and no others."""
    other: Any = OmegaConf.create(config)
    other.sampler.steps, other.ldm.fit.images, other.eval.batch_size, other.seed = 50, 4_800_000, 7, 3
    other.ae.weights = "/other/vq-f4.ckpt"
    line = shown(fake_store, config=OmegaConf.to_container(other))[0]
    assert line.endswith("no: ldm.fit.images 4 800 000 (19 680 000), sampler.steps 50 (500)")


def test_an_option_that_is_newer_than_the_run_is_no_difference_at_its_default(
    fake_store: Any, config: dict[str, Any]
) -> None:
    older: Any = OmegaConf.create(config)
    del older.data.bits
    assert "equal as printed" in shown(fake_store, config=OmegaConf.to_container(older))[0]
    fake_store.root = fake_store.root.parent / "other"
    del older.sampler.steps  # the row's 500 is no default
    assert shown(fake_store, config=OmegaConf.to_container(older))[0].endswith("no: sampler.steps null (500)")


def test_a_first_stage_of_its_own_is_one_difference(fake_store: Any, config: dict[str, Any]) -> None:
    own = OmegaConf.to_container(load([f"experiment=paper/{ROW}", "ae.weights=null"]).cfg, resolve=True)
    assert shown(fake_store, config=own)[0].endswith("no: ae.weights null (a file)")


def test_a_snapshot_and_weights_from_outside_are_no_training(fake_store: Any, config: dict[str, Any]) -> None:
    half: Any = OmegaConf.create(config)
    half.eval.at = [0.25, 0.5]
    assert shown(fake_store, config=OmegaConf.to_container(half))[0].endswith("no: scored after 0.5 of the training")
    fake_store.root = fake_store.root.parent / "imported"
    half.eval.at, half.ldm.weights, half.ldm.fit = [1.0], "model.ckpt", None
    assert shown(fake_store, config=OmegaConf.to_container(half))[0].endswith("no: ldm.weights a file (null)")


def test_data_of_another_size_is_named(fake_store: Any, config: dict[str, Any]) -> None:
    folder = fake_store.root / "data" / "shards-0a"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"train": 512, "val": 5000}')
    stages = [
        fake_store.entry("data", "0a", folder, "512 train", 0.1), fake_store.autoencoder(), fake_store.denoiser(),
        *fake_store.snapshot("a2", 40000, 12.83),
    ]  # fmt: skip
    fake_store.run(stages, choices={"experiment": f"paper/{ROW}"}, config=config)
    assert "no: 512 train pictures (25 000)" in text(fake_store.root)


def test_super_resolution_has_an_fid_to_each_split(fake_store: Any) -> None:
    """FID-val and FID-train are two runs of one row, and both are the row's."""
    for split in ("val", "train"):
        words = ["experiment=paper/sr_ldm4", f"eval.reference.split={split}"]
        own = OmegaConf.to_container(load(words).cfg, resolve=True)
        fake_store.root = fake_store.root.parent / split
        fake_store.finished(choices={"experiment": "paper/sr_ldm4"}, config=own)
        lines = [line for line in text(fake_store.root).splitlines() if "12.83 [" in line]
        assert len(lines) == 1 and f"FID to {split}" in lines[0]
        assert any("equal as printed" in line for line in text(fake_store.root).splitlines()[:-1])


def test_runs_of_other_experiments_are_no_rows(fake_store: Any) -> None:
    fake_store.finished(choices={"experiment": "demo"})
    assert runs_of(fake_store.root) == {}
