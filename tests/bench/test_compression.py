"""`compare=compression`: the paper's networks from f = 1 to 32, each measured once, time over FLOPs against the best."""

import pytest

from ldmlab.bench.command import run
from ldmlab.bench.compression import FAMILY
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError

WORDS = ["compare=compression", "cond=class_label", "ldm.network.width=32", "bench.rounds=1", "bench.variants=[ddim]", "bench.batch_size=1",
         "runtime.threads=1"]  # fmt: skip


@pytest.mark.slow
def test_every_f_is_measured_and_the_best_is_one() -> None:
    words = [*WORDS, "data.resolution=128"]
    report = run(load(words).cfg, "python src/bench.py " + " ".join(words))
    assert [row["ldm"] for row in report.rows] == list(FAMILY)
    assert [row["f"] for row in report.rows] == [1, 2, 4, 8, 16, 32]
    assert [row["latent"] for row in report.rows][::5] == ["128x128x3", "4x4x16"]
    work = [row["gflop_per_image"] for row in report.rows]
    assert work == sorted(work, reverse=True)
    ratios = [row["over_best"] for row in report.rows]
    assert min(ratios) == 1
    for row in report.rows:  # the same quotient, from the columns a reader sees
        speed = [r["gflop_per_image"] / r["seconds_per_image"] for r in report.rows]
        assert row["over_best"] == pytest.approx(
            max(speed) / (row["gflop_per_image"] / row["seconds_per_image"]), rel=1e-6
        )


def test_a_resolution_that_is_too_small_is_named() -> None:
    words = [*WORDS, "data.resolution=32"]
    with pytest.raises(ConfigError, match=r"data\.resolution=32 leaves a latent of .*256"):
        run(load(words).cfg, "python src/bench.py " + " ".join(words))
