"""Time grids: the official rule's examples, diffusers' trailing rule, and the steps that are refused."""

import itertools

import numpy as np
import pytest

from ldmlab.errors import ConfigError
from ldmlab.samplers.grid import times

EXACT = [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500]  # docs/paper.md#sampling-times


@pytest.mark.parametrize(
    ("steps", "first", "last"),  # the official rule by hand, where it gives as many as asked for
    [(10, 901, 1), (50, 981, 1), (100, 991, 1), (200, 996, 1), (250, 997, 1), (500, 999, 1)],
)
def test_official_examples(steps: int, first: int, last: int) -> None:
    grid = times(1000, steps, "official")
    assert (len(grid), grid[0], grid[-2], grid[-1]) == (steps + 1, first, last, 0)


def test_official_takes_exactly_the_exact_numbers_of_steps() -> None:
    def accepted(steps: int) -> bool:
        try:
            return times(1000, steps, "official")[:-1] == [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
        except ConfigError:
            return False

    assert [s for s in range(1, 1001) if accepted(s)] == EXACT


@pytest.mark.parametrize(
    ("steps", "near"), [(150, "125 or 200"), (400, "250 or 500"), (3, "2 or 4"), (300, "250 or 500"), (1000, "500")]
)
def test_other_numbers_are_refused_with_their_neighbours(steps: int, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampler\.steps={steps} .*Nearest exact: {near};"):
        times(1000, steps, "official")


@pytest.mark.parametrize("T", [1000, 999, 10])
def test_trailing_is_that_of_diffusers_and_works_for_any_number(T: int) -> None:
    for steps in range(1, T + 1):
        grid = times(T, steps, "trailing")
        assert grid[0] == T - 1 and grid[-1] == -1 and len(grid) == steps + 1
        assert all(a > b for a, b in itertools.pairwise(grid))
        theirs = np.round(np.arange(T, 0, -T / steps)).astype(int)[:steps] - 1  # DDIMScheduler.set_timesteps
        half = np.array(
            [2 * i * T % (2 * steps) == steps for i in range(steps)]
        )  # where float noise decides the rounding
        assert (np.array(grid[:-1]) == theirs)[~half].all()
        assert (abs(np.array(grid[:-1]) - theirs) <= 1).all()


def test_trailing_with_all_steps_visits_all_times() -> None:
    assert times(1000, 1000, "trailing") == list(range(999, -2, -1))


@pytest.mark.parametrize("steps", [0, -5, 1001])
def test_steps_outside_the_schedule_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=rf"sampler\.steps must be from 1 to 1000.*got {steps}"):
        times(1000, steps, "trailing")
