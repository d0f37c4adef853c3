"""The search over a UNet's levels: the quadratic is exact, the best of all is found, and every cell of a study is reached."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmlab.config.compose import load
from ldmlab.data.fields import label
from ldmlab.errors import ConfigError
from ldmlab.pipeline import budget, widths
from ldmlab.pipeline.widths import Sizes, Structure, fitted, nearest_heads, off, search

TWO = Structure((1, 2), 8, 1, (1,), None, 32)


class Data:
    class_names, declared = tuple("abcdefghij"), (label(10),)
    fields = ("label",)

    def __init__(self, resolution: int = 64):
        self.resolution = resolution


def quadratic(sizes: Sizes) -> float:
    assert sizes.level_channels is not None and sizes.blocks is not None
    a, b = sizes.level_channels
    return sizes.blocks * (5.0 * a * a + 3.0 * a * b + 2.0 * b * b + 40.0 * a + 10.0 * b) + 700.0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=10, max_size=10), st.lists(st.integers(1, 300), min_size=3, max_size=3))
def test_a_quadratic_is_known_from_its_counts(coefficients: list[int], at: list[int]) -> None:
    def value(x: Any) -> float:
        products = [a * b for a, b in itertools.combinations_with_replacement(x, 2)]
        return float(np.dot(coefficients, [1, *x, *products]))

    model = fitted(value, [1, 2, 4], 8)
    assert model(np.array([at], float))[0] == pytest.approx(value(at), rel=1e-9, abs=1e-3)


@pytest.mark.parametrize("target", [2e3, 1.1e4, 3e5, 4e6])
def test_what_is_found_is_within_the_tolerance_whenever_anything_is(target: float) -> None:
    """Beside all networks whose levels lie within a factor of 1.6 of their ratio."""
    found = search(TWO, quadratic, target, 0.03)
    assert found == search(TWO, quadratic, target, 0.03)
    steps = [8 * n for n in range(1, 160)]
    every = [Sizes(a, (a, b), 1) for a, b in itertools.product(steps, steps) if 1.25 * a < b < 3.2 * a]
    if min(off(quadratic(sizes), target) for sizes in every) <= 0.03:
        assert off(found.value, target) <= 0.03
    assert found.value == quadratic(found.sizes)
    assert all(n % 8 == 0 for n in found.sizes.level_channels or ())


def test_without_a_network_near_enough_the_nearest_on_either_side_are_named() -> None:
    met = search(TWO, quadratic, 3_000.0, 1e-4)
    assert met.below is not None and met.above is not None
    assert met.below[1] < 3_000 < met.above[1] and met.value in (met.below[1], met.above[1])
    steps = [8 * n for n in range(1, 9)]
    values = [quadratic(Sizes(a, (a, b), n)) for a in steps for b in steps if a < b for n in (1, 2)]
    assert met.below[1] == max(v for v in values if v < 3_000)
    assert met.above[1] == min(v for v in values if v > 3_000)


def test_heads_divide_every_attention_and_come_nearest() -> None:
    assert nearest_heads([64, 96], 32) == 2  # 32 and 48
    assert nearest_heads([88], 32) == 2  # 44; 4 would be 22
    assert nearest_heads([40], 32) == 1
    assert TWO.sizes([64, 96]).head_channels == 32 and TWO.sizes([64, 96]).heads is None
    assert TWO.sizes([24, 88])[3:] == (2, None)


def test_levels_that_are_multiples_are_said_by_their_width() -> None:
    """So that the same network has one id, however it was chosen."""
    assert TWO.sizes([32, 64]).options((1, 2))["ldm.network.level_channels"] is None
    options = TWO.sizes([32, 72]).options((1, 2))
    assert options["ldm.network.level_channels"] == [32, 72] and options["ldm.network.width"] == 32
    assert TWO.sizes([32, 72]).typed((1, 2)).split()[1] == "ldm.network.level_channels=[32,72]"


@pytest.mark.parametrize(
    ("ae", "resolution", "target"), [("identity", 64, 1.4e9), ("pca_f32", 64, 1e10), ("pca_f8", 32, 3e9)]
)
def test_cells_of_a_study_are_reached(ae: str, resolution: int, target: float) -> None:
    """The ends and the middle; all cells: `bench.py compare=fair`."""
    words = ["ldm=unet_study", f"ae={ae}", f"data.resolution={resolution}", f"ldm.budget.flops_per_image={target}"]
    choice = budget.choose_width(load(words).cfg, Data(resolution))
    assert choice.facts is not None
    counted = budget.cost(choice.cfg, Data(resolution), choice.cfg.ldm.network.width)
    assert counted.flops_per_image == choice.facts["network"]["flops_per_image"]
    assert off(counted.flops_per_image, target) <= 0.03
    assert choice.cfg.ldm.network.blocks == 1


@pytest.mark.parametrize(
    ("target", "tolerance", "said"),
    [
        (1.0e9, 2e-4, r"no channels come within 0\.02 %\. The nearest are .*/.* with .* and .*/.* with"),
        (1.0e8, 0.03, r"no channels come within 3 %\. The nearest is 8/16 channels, 1 block, 1 head with 6\.\d+e\+08"),
    ],
)
def test_a_cell_that_is_not_reached_names_its_neighbours(target: float, tolerance: float, said: str) -> None:
    words = [
        "ldm=unet_study",
        "ae=identity",
        f"ldm.budget.flops_per_image={target}",
        f"ldm.budget.tolerance={tolerance}",
    ]
    with pytest.raises(ConfigError, match=said):
        budget.choose_width(load([*words, "data.resolution=64"]).cfg, Data())


def test_the_search_gives_up_at_the_widest() -> None:
    assert max(widths._multiples(16_380.0, 8)) == widths.WIDEST
