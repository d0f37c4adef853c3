"""Every cell of every study of f, composed and planned on little data: parts fit, nothing is trained."""

import re
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ldmlab.config.compose import CONF, SWEEP_CHILD, grids_of, load, register_schema, swept
from ldmlab.config.words import read
from ldmlab.pipeline.run import prepare
from ldmlab.sweeping.cells import cells_beside, with_seeds
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


@pytest.mark.parametrize("experiment", [name for study, name in STUDIES if study == "compression"])
def test_the_cells_beside_the_first_grid_are_runs_too(experiment: str, store: Path) -> None:
    """Gaussians and other numbers of steps, of first stages of the study; what was typed narrows them and replaces nothing else."""
    words = ["sweeps=compression", f"experiment={experiment}", *LITTLE, f"store={store}"]
    first, *beside = grids(words)
    (arms,) = first
    assert len(beside) == {"compression_imagenet": 1, "compression_shapes64": 3, "compression_cifar32": 3}.get(
        experiment, 2
    )
    own = first[arms].split(",")
    for grid in beside:
        jobs = cells_beside(grid, ["ldm.fit.images=640", "sampler.steps=7"], first)
        cells = [load([*words, *job]) for job in (jobs[0], jobs[-1])]
        assert {cell.choices[arms] for cell in cells} <= set(own)
        assert all(list(cell.cfg.eval.at) == [1.0] and cell.cfg.eval.noise == "pixels" for cell in cells)
        if cells[0].choices["ldm"] == "gaussian":
            assert all(cell.cfg.ldm.fit is None and cell.cfg.tune is None for cell in cells)
            prepare(cells[-1])
        else:
            steps = {cell.cfg.sampler.steps for cell in cells}
            assert steps <= {10, 50, 200} and all(cell.cfg.ldm.fit.images == 640 for cell in cells)
            assert "rate_distortion" in cells[0].cfg.metric and "diagnostics" in cells[0].cfg.stage


def test_what_is_typed_narrows_the_grids_beside_the_first() -> None:
    words = ["sweeps=compression", "experiment=compression_small"]
    first, gaussian, ladder = grids(words)
    typed = ["ae=pca_f4,kl_f8_quick", "tune=lr"]
    (only,) = cells_beside(gaussian, typed, first)
    assert "ae=pca_f4" in only and "ldm=gaussian" in only and "tune=none" in only and "tune=lr" not in only
    assert [[w for w in job if w.startswith(("ae=", "sampler.steps="))] for job in cells_beside(ladder, typed, first)] == [
        ["ae=pca_f4", "sampler.steps=10"], ["ae=pca_f4", "sampler.steps=50"],
    ]  # fmt: skip
    assert cells_beside(gaussian, ["ae=kl_f8_quick"], first) == []


def grids(words: list[str]) -> list[dict[str, str]]:
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return grids_of(compose("config", overrides=words, return_hydra_config=True).hydra)


def test_a_gaussian_is_planned_with_its_costs(store: Path) -> None:
    """A dry run counts operations; a network without a forward pass has none."""
    plan = prepare(load(["ae=pca_f8", "ldm=gaussian", *LITTLE, "dry_run=true", f"store={store}"]))
    assert plan.resolved.costs.forward == 0 and plan.resolved.costs.decode > 0


@pytest.mark.slow
def test_a_dry_run_counts_the_whole_study(store: Path) -> None:
    jobs = with_seeds(jobs_of("compression", "compression_small", store)[:2])
    cells = forecast([[*job, "ldm.fit.images=640"] for job in jobs])
    assert len(cells) == 4 and all(cell.left() > 0 for cell in cells)
    text = summary(cells, 2, 1)
    assert "4 cells · 27 stages to make · about" in text  # two cells share a basis of noise
    assert "(shared: extractor autoencoder reconstructions)" in text
    assert not list(store.glob("denoiser/*")) and not list(store.glob("autoencoder/*"))
