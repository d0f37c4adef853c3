"""Every cell of every study of f, composed and planned on little data: parts fit, nothing is trained."""

import re
from itertools import product
from pathlib import Path

import pytest

from ldmlab.config.compose import SWEEP_CHILD, load, swept
from ldmlab.config.words import read
from ldmlab.pipeline.run import prepare
from ldmlab.sweeping.cells import with_seeds
from ldmlab.sweeping.forecast import forecast, summary

LITTLE = ["data=shapes", "eval=shapes", "data.train_images=512", "data.val_images=16", "eval.reference.images=64"]
STUDIES = {  # sweep, experiment: cells, and the f that they have
    ("compression", "compression_small"): (8, {1, 4, 16}),
    ("compression", "compression_shapes64"): (38, {1, 2, 4, 8, 16, 32}),
    ("compression", "compression_cifar32"): (34, {1, 2, 4, 8, 16}),
    ("compression", "compression_network"): (10, {1, 2, 4, 8, 16}),
    ("compression", "compression_imagenet"): (6, {1, 2, 4, 8, 16, 32}),
    ("tokens", "compression_shapes64"): (14, {1, 2, 4, 8}),
    ("channels", "compression_shapes64"): (12, {4, 8, 16}),
    ("complexity", "compression_shapes64"): (24, {2, 4, 8}),
    ("schedule", "compression_shapes64"): (12, {1, 2}),
    ("kl_or_vq", "compression_shapes64"): (8, {4}),
    ("latent_scale", "compression_shapes64"): (24, {4, 8}),
}


@pytest.fixture(autouse=True)
def a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWEEP_CHILD, "1")


def jobs_of(study: str, experiment: str, store: Path) -> list[list[str]]:
    words = [f"sweeps={study}", f"experiment={experiment}", *LITTLE, f"store={store}"]
    values = [word.values for word in read([f"{path}={v}" for path, v in swept(words).items()], sweep=True)]
    return [[*words, *chosen] for chosen in product(*values)]


def f_of(ae: str) -> int:
    return int((re.search(r"f(\d+)", ae) or ["", "1"])[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize(("study", "experiment"), STUDIES)
def test_every_cell_is_a_run_that_could_start(study: str, experiment: str, store: Path) -> None:
    """All are composed; the smallest and the largest f are planned."""
    count, fs = STUDIES[study, experiment]
    composed = [load(job) for job in jobs_of(study, experiment, store)]
    seeds = [(cfg.seeds.first_stage if cfg.ae.fit is not None else 1) * cfg.seeds.denoiser for cfg, _ in composed]
    assert sum(seeds) == count
    by_f = {f_of(each.choices["ae"]): each for each in composed}
    assert set(by_f) == fs
    planned = fs if study in ("tokens", "channels") else {min(fs), max(fs)}  # a search for equal work takes seconds
    cells = [prepare(by_f[f]).resolved for f in sorted(planned)]
    assert {cell.autoencoder.f for cell in cells} == planned
    if study == "tokens":
        assert {64} == {(s[1] // cell.cfg.ldm.network.patch) ** 2 for cell in cells for s in [cell.latent_shape]}
    if study == "channels":
        assert len({c * h * w for cell in cells for c, h, w in [cell.latent_shape]}) == 1


@pytest.mark.slow
def test_a_dry_run_counts_the_whole_study(store: Path) -> None:
    jobs = with_seeds(jobs_of("compression", "compression_small", store)[:2])
    cells = forecast([[*job, "ldm.fit.images=640"] for job in jobs])
    assert len(cells) == 4 and all(cell.left() > 0 for cell in cells)
    text = summary(cells, 2, 1)
    assert "4 cells · 26 stages to make · about" in text and "(shared: extractor autoencoder reconstructions)" in text
    assert not list(store.glob("denoiser/*")) and not list(store.glob("autoencoder/*"))
