"""`compare=first_stage`: each contender starts at its closed form, trains its slices, and stands still when its budget is spent."""

import shlex

import pytest

from ldmlab.bench.command import run
from ldmlab.config.compose import load

FAMILY = "bench.family=[pca_f4,kl_f4_quick,'kl_f4_quick ae.network.window=3','kl_f4_quick ae.network.path=none']"
WORDS = ["compare=first_stage", FAMILY, "bench.seconds=1", "bench.rounds=2", "data.resolution=32",
         "data.train_images=64", "data.val_images=16", "data.cached=false", "runtime.threads=1", "debug=tiny"]  # fmt: skip


def test_linear_stands_still_and_the_network_beside_it_begins_there_and_goes_on() -> None:
    linear, quick, wide, alone = run(load(WORDS).cfg, "python src/bench.py " + shlex.join(WORDS)).rows
    assert linear["ae"] == "pca_f4" and linear["images"] == 0 and quick["images"] > 0
    assert linear["psnr_0"] == linear["psnr_1"] == linear["psnr_2"]
    assert quick["psnr_0"] == pytest.approx(linear["psnr_0"], abs=1e-3)  # E and D are zero
    assert wide["psnr_0"] > linear["psnr_0"]  # its linear decoder reads neighbours too
    assert quick["marks"] == [0, 0.5, 1] and quick["seconds"] > 0
    assert alone["ae"] == "kl_f4_quick ae.network.path=none" and alone["psnr_0"] < linear["psnr_0"] - 3
    assert quick["psnr_2"] != pytest.approx(quick["psnr_0"], abs=1e-6)
