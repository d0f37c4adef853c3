"""The cells of a study as plain numbers."""

import numpy as np
from tables import drawn

from ldmlab.studies.cells import CellTable


def test_pixels_come_first_in_whatever_order_the_runs_were_found() -> None:
    """A line over f is drawn in the order of the arms."""
    table = drawn(np.random.default_rng(0), {1: 3.0, 2: 2.9, 4: 2.8, 8: 3.1}, families=("kl", "vq"))
    for seed in range(4):
        cells = list(table.cells)
        np.random.default_rng(seed).shuffle(cells)  # type: ignore[arg-type]
        mixed = CellTable(tuple(cells))
        assert [arm.f for arm in mixed.arms] == [1, 2, 4, 8, 2, 4, 8] and [arm.f for arm in mixed.curve] == [1, 2, 4, 8]
        assert [arm.family for arm in mixed.arms] == [
            "pixels",
            *[mixed.arms[1].family] * 3,
            *[mixed.arms[4].family] * 3,
        ]
