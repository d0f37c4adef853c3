"""Times that can be compared on a machine that others use too: contenders take turns, and ratios are taken round by round."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Clock(NamedTuple):
    """What is read before and after a piece of work."""

    name: str
    now: Callable[[], float]  # seconds


def clock_for(device: torch.device) -> Clock:
    """CPU seconds of this process with one thread, which other processes hardly disturb; else wall time."""
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return Clock("wall, synchronised", synchronised)
    if torch.get_num_threads() == 1:
        return Clock("CPU seconds", time.process_time)
    return Clock("wall", time.perf_counter)


def interleave(works: Mapping[str, Callable[[], object]], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each work in each round; within a round they take turns, in alternating order. A first round warms up.

    What one leaves to the garbage collector is collected before the next begins.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.freeze()  # else each of the collections below walks through all of torch
    try:
        for turn in range(-1, rounds):
            for name in list(works)[:: 1 if turn % 2 else -1]:
                gc.collect()
                began = clock.now()
                works[name]()
                if turn >= 0:
                    seconds[name].append(clock.now() - began)
    finally:
        gc.unfreeze()
    return seconds


class Ratio(NamedTuple):
    """Median of the rounds' ratios, with their quartiles."""

    median: float
    low: float
    high: float


def speed_ratio(mine: list[float], theirs: list[float]) -> Ratio:
    """How much faster `mine` is: their seconds over mine, round by round."""
    ratios = sorted(t / m for m, t in zip(mine, theirs, strict=True))
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)
