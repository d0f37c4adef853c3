"""`compare=fair`: a row a cell, ratios over the reference, and a reason where a cell cannot be."""

from pathlib import Path

import pytest

from ldmlab.bench.command import run
from ldmlab.config.compose import load
from ldmlab.pipeline import throughput


def test_rows_are_the_cells_and_ratios_those_of_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "WORK", 1e8)
    words = [
        "compare=fair", "ldm=unet_study", "data.resolution=16", "data.train_images=16", "data.cached=false", f"store={tmp_path}",
        "bench.targets=[2e7]", "bench.modes=[flops,network]", "bench.family=[pca_f8,pca_f16]", "ldm.fit.batch_size=4",
        "runtime.threads=1",
    ]  # fmt: skip
    report = run(load(words).cfg, "python src/bench.py " + " ".join(words))
    flops, tiny, network, _ = report.rows
    assert [(row["fair"], row["ae"]) for row in report.rows][:3] == [
        ("flops", "pca_f8"),
        ("flops", "pca_f16"),
        ("network", "pca_f8"),
    ]
    assert "halved" in tiny["refused"] or "multiples of 2" in tiny["refused"]  # a latent of one position
    assert flops["flops_per_image"] == pytest.approx(2e7, rel=0.03) and "refused" not in flops
    assert network["flops_ratio"] == pytest.approx(network["flops_per_image"] / 2e7, rel=0.03)
    for row in (flops, network):
        assert row["per_flop"] == pytest.approx(row["seconds_over_reference"] / row["flops_ratio"])
        assert row["flop_per_second"] == pytest.approx(row["flops_per_image"] * row["images_per_second"])
    assert len(list(tmp_path.glob("throughput/*/done.json"))) == 2
