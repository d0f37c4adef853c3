"""Which sizes a network of some structure can have: what a search for equal parameters or equal work chooses from."""

from typing import Protocol

WIDEST, DEEPEST = 16_384, 1_024  # where such a search gives up


class Resizable(Protocol):
    """A denoiser's network. It answers for its own structure (multipliers, heads), whatever its present size."""

    def widths(self) -> range:
        """Values of `ldm.network.width` that fit the structure, rising."""

    def depths(self) -> range:
        """Values of `ldm.network.blocks` that fit the structure, rising."""


def multiples(step: int) -> range:
    """The widths that are multiples of `step`."""
    return range(step, WIDEST + 1, step)


def any_depth() -> range:
    """From one block up."""
    return range(1, DEEPEST + 1)
