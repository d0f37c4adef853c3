"""A width from a target: the search, the cells of a study, and what is said when nothing fits."""

from pathlib import Path
from typing import Any

import pytest

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.data.fields import label
from ldmlab.errors import ConfigError
from ldmlab.pipeline import budget
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.run import prepare


class Data:
    class_names, declared = ("a", "b"), (label(2),)
    resolution = 256
    fields = ("label",)


def settled(*words: str) -> tuple[Any, str | None]:
    cfg = load(list(words)).cfg
    return budget.choose_width(cfg, Data())[:2]


@pytest.mark.parametrize("target", [0.1, 1, 5, 6.2, 6.3, 36, 1e6])
def test_search_finds_the_nearest_of_all(target: float) -> None:
    values = {n: n * n for n in range(1, 12)}
    best = min(values, key=lambda n: max(values[n] / target, target / values[n]))
    assert budget.nearest(lambda n: float(values[n]), target, 11) == best


def test_without_a_target_nothing_happens() -> None:
    cfg, line = settled("ldm=unet_tiny")
    assert line is None and cfg.ldm.network.width == 32


@pytest.mark.parametrize("ldm,millions", [("unet_tiny", 90), ("dit_s_2", 20)])
def test_equal_parameters_at_each_f(ldm: str, millions: int) -> None:
    for ae in ("vq_f8", "vq_f32"):
        cfg, line = settled(f"ldm={ldm}", f"ae={ae}", f"ldm.budget.parameters={millions}e6")
        with build.shapes_only():
            network = build.denoiser(cfg, build.autoencoder(cfg), Data()).network
        assert parameters_of(network) == pytest.approx(millions * 1e6, rel=0.1)
        assert line is not None and f"width {cfg.ldm.network.width}" in line and "GFLOP an image" in line


def test_equal_work_makes_networks_of_small_latents_wider() -> None:
    widths, costs = [], []
    for ae in ("vq_f8", "vq_f16"):
        words = ["ldm=dit_s_2", "ldm.network.blocks=2", f"ae={ae}", "ldm.budget.flops_per_image=5e9"]
        cfg, _ = settled(*words)
        widths.append(cfg.ldm.network.width)
        costs.append(budget.cost(cfg, Data(), widths[-1]))
    assert widths[1] > 1.5 * widths[0]
    assert all(c.flops_per_image == pytest.approx(5e9, rel=0.1) for c in costs)
    assert costs[0].flops_per_step == costs[0].flops_per_image * 256


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ldm.budget.parameters=1e7", "ldm.budget.flops_per_image=1e9"], ["one target", "flops_per_image"]),
        (["ldm.budget.parameters=1e3"], ["ldm.budget.parameters=1000", "ldm.network.width=32", "tolerance"]),
    ],
)
def test_what_cannot_be_met_is_said(words: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settled("ldm=unet_tiny", *words)
    assert all(part in str(error.value) for part in said), str(error.value)


@pytest.mark.parametrize("name", budget.TARGETS)
def test_a_typed_width_beside_a_budget_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"ldm\.network\.width=64 and ldm\.budget\.{name}=1e\+09 .*budget\.{name}=null"
    ):
        load(["ldm=unet_tiny", "ldm.network.width=64", f"ldm.budget.{name}=1e9"])
    assert load(["ldm=unet_tiny", "ldm.network.width=64", f"ldm.budget.{name}=null"]).cfg.ldm.network.width == 64


def test_the_width_found_is_the_width_typed(tmp_path: Path) -> None:
    """An id knows the width and not how it was chosen."""
    base = [
        "data.train_images=64",
        "data.val_images=16",
        "data.cached=false",
        f"store={tmp_path}",
        "ldm.network.head_channels=32",
    ]
    by_budget = prepare(load([*base, "ldm.budget.parameters=10e6", "ldm.budget.tolerance=0.4"]))
    by_width = prepare(load([*base, "ldm.network.width=64"]))
    assert by_budget.address("denoiser").id == by_width.address("denoiser").id
    assert len(by_budget.notes) == 1 and not by_width.notes
