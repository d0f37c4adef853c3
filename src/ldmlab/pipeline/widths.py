"""The channels of each level of a UNet that meet a target of operations or parameters, in steps of its norm groups' channels.

Operations and parameters of a UNet are sums over products of two widths, so a quadratic in the levels' channels. A few counts
give its coefficients; what the quadratic proposes is counted before it is believed. Nothing here is random or timed.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ldmlab.networks.sizes import WIDEST

REACH = 4  # steps by which a level may leave its multiple of the common width
TRIES = 8  # proposals that are counted for one number of blocks, where the quadratic was wrong of those before
EXACT = 1e-4  # relative; it is exact but where the first convolution's width was rounded
WEIGHT = 0.05  # of (deviation / tolerance)² beside the squared logarithms by which the levels leave their ratios
STRAINED = 0.25  # of that sum, from which on other numbers of blocks are tried: a level at 0.6 or 1.65 of its share


class Sizes(NamedTuple):
    """What a budget chooses of `ldm.network`; level_channels is None where the levels are width · multipliers."""

    width: int
    level_channels: tuple[int, ...] | None = None
    blocks: int | None = None
    heads: int | None = None
    head_channels: int | None = None

    def options(self, multipliers: Sequence[int] = ()) -> dict[str, Any]:
        """The options that make this network, by path; levels that are width · multipliers are said by these."""
        if self.level_channels is None:
            return {"ldm.network.width": self.width}
        plain = list(self.level_channels) == [self.width * multiplier for multiplier in multipliers]
        values = {**self._asdict(), "level_channels": None if plain else list(self.level_channels)}
        return {f"ldm.network.{name}": value for name, value in values.items()}

    def words(self) -> str:
        """For plans and tables: "width 64", "24/48 channels, 2 blocks, 1 head"."""
        if self.level_channels is None:
            return f"width {self.width}"
        heads = f"{self.heads} head{'s' * (self.heads != 1)}" if self.heads else f"heads of {self.head_channels}"
        blocks = f"{self.blocks} block{'s' * (self.blocks != 1)}"
        return f"{'/'.join(map(str, self.level_channels))} channels, {blocks}, {heads}"

    def typed(self, multipliers: Sequence[int] = ()) -> str:
        """The words that choose it on a command line."""
        said = (
            (path, "null" if value is None else str(value).replace(" ", ""))
            for path, value in self.options(multipliers).items()
        )
        return " ".join(f"{path}={value}" for path, value in said)


@dataclass(frozen=True)
class Structure:
    """What a search keeps: the levels' wished ratios, the step of their channels, blocks, and the heads of their attentions.

    attended: indices of the levels with attention, the last level (the middle block's) among them. One of heads and
    head_channels is given; head_channels is a wish where no level's channels are a multiple of it.
    """

    multipliers: tuple[int, ...]
    step: int
    blocks: int
    attended: tuple[int, ...]
    heads: int | None
    head_channels: int | None

    def sizes(self, channels: Sequence[int]) -> Sizes:
        """The network with these channels: first convolution and time embedding follow the first level."""
        width = self.step * max(1, round(channels[0] / self.multipliers[0] / self.step))
        attended = [channels[level] for level in self.attended]
        heads, head_channels = self.heads, self.head_channels
        if head_channels is not None and any(n % head_channels for n in attended):
            heads, head_channels = nearest_heads(attended, head_channels), None
        return Sizes(width, tuple(channels), self.blocks, heads, head_channels)

    def strain(self, channels: Sequence[int], common: float) -> float:
        """How far the levels are from `common` · multipliers, and heads from their wished size: a sum of squared logarithms."""
        levels = sum(math.log(n / common / m) ** 2 for n, m in zip(channels, self.multipliers, strict=True))
        if self.head_channels is None:
            return levels
        attended = [channels[level] for level in self.attended]
        size = sum(attended) / len(attended) / nearest_heads(attended, self.head_channels)
        return levels + WEIGHT * math.log(size / self.head_channels) ** 2

    def fits(self, channels: Sequence[int]) -> bool:
        """Whether the levels keep their order, and the heads that were asked for divide them."""
        pairs = zip(self.multipliers, channels, strict=True)
        ordered = all((m < n) == (a < b) for (m, a), (n, b) in itertools.combinations(pairs, 2))
        return ordered and not any(channels[level] % (self.heads or 1) for level in self.attended)


Rank = tuple[bool, float]  # outside the tolerance; then how far off, else how strained


class Met(NamedTuple):
    """The network of a search, its counted value, and the nearest counted below and above the target (None: there is none)."""

    sizes: Sizes
    value: float
    below: tuple[Sizes, float] | None
    above: tuple[Sizes, float] | None


def nearest_heads(attended: Sequence[int], head_channels: int) -> int:
    """The number of heads that divides the channels of every attention and comes nearest, in ratio, to heads of that size."""
    common, mean = math.gcd(*attended), sum(attended) / len(attended)
    divisors = [n for n in range(1, common + 1) if common % n == 0]
    return min(divisors, key=lambda n: (abs(math.log(mean / n / head_channels)), n))


def search(structure: Structure, count: Callable[[Sizes], float], target: float, tolerance: float) -> Met:
    """The levels' channels whose counted value comes nearest to `target`.

    Within `tolerance` a network whose levels keep their ratios goes before one that is nearer to the target by a per cent. One
    block more or less a level is tried where the wished number leaves the tolerance or the ratios.
    """
    found: dict[Sizes, float] = {}
    ranked: list[tuple[Rank, Sizes]] = []
    for blocks in (structure.blocks, structure.blocks + 1, structure.blocks - 1):
        if blocks < 1 or (ranked and min(rank for rank, _ in ranked) <= (False, STRAINED)):
            continue
        (missed, strain), sizes, counted = _search(replace(structure, blocks=blocks), count, target, tolerance)
        found |= counted
        ranked.append(((missed, strain if missed else strain + math.log(blocks / structure.blocks) ** 2), sizes))
    best = min(ranked, key=lambda each: each[0])[1]
    below = max(((s, v) for s, v in found.items() if v <= target), key=lambda pair: pair[1], default=None)
    above = min(((s, v) for s, v in found.items() if v > target), key=lambda pair: pair[1], default=None)
    return Met(best, found[best], below, above)


def off(value: float, target: float) -> float:
    """How far a value is from the target, relatively, whichever is the larger."""
    return max(value / target, target / value) - 1


def _search(
    structure: Structure, count: Callable[[Sizes], float], target: float, tolerance: float
) -> tuple[Rank, Sizes, dict[Sizes, float]]:
    """The best of one number of blocks with its rank, and all that were counted."""
    levels = sorted(set(structure.multipliers))  # levels of equal multipliers have equal channels
    place = [levels.index(m) for m in structure.multipliers]
    model = fitted(lambda x: count(structure.sizes([x[i] for i in place])), levels, structure.step)
    common = _solved(lambda b: float(model(np.array([[b * m for m in levels]], float))[0]), target, structure.step)
    options = [_multiples(common * m, structure.step) for m in levels]
    proposed = [tuple(x[i] for i in place) for x in itertools.product(*options)]
    proposed = [channels for channels in proposed if structure.fits(channels)]
    values = model(np.array([[channels[place.index(i)] for i in range(len(levels))] for channels in proposed], float))
    offs = [off(max(float(value), 1.0), target) for value in values]

    def rank(i: int) -> Rank:
        if offs[i] > tolerance:
            return True, offs[i]
        return False, structure.strain(proposed[i], common) + WEIGHT * (offs[i] / tolerance) ** 2

    found: dict[Sizes, float] = {}
    for i in sorted(range(len(proposed)), key=lambda i: (rank(i), proposed[i]))[:TRIES]:
        sizes = structure.sizes(proposed[i])
        found[sizes] = count(sizes)
        if off(found[sizes], target) <= tolerance:
            return (False, rank(i)[1]), sizes, found
        if off(found[sizes], max(float(values[i]), 1.0)) <= EXACT:
            break  # the quadratic is right, and what it ranks behind is farther off
    for side in (values <= target, values > target):  # nothing is near enough: the nearest of either side
        if side.any():
            sizes = structure.sizes(proposed[min(np.flatnonzero(side), key=lambda i: offs[i])])
            found[sizes] = count(sizes)
    best = min(found, key=lambda sizes: off(found[sizes], target))
    return (True, off(found[best], target)), best, found


def fitted(
    value: Callable[[Sequence[int]], float], levels: Sequence[int], step: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The quadratic through counts of `value` at channels in the ratios `levels`: points [N, len(levels)] → values [N].

    Exact for a sum of products of two widths, as long as neighbouring levels differ (equal ones need no 1×1 convolution).
    """
    n, start = len(levels), [16 * m for m in levels]  # in steps
    moves = [(), *((i,) for i in range(n)), *itertools.combinations_with_replacement(range(n), 2)]
    points = np.array([[start[k] + levels[0] * 4 * move.count(k) for k in range(n)] for move in moves], float)
    values = np.array([value([int(step * x) for x in point]) for point in points])
    scale = points.mean(axis=0)
    coefficients = np.linalg.solve(_terms(points / scale), values)
    return lambda x: _terms(x / step / scale) @ coefficients


def _terms(x: np.ndarray) -> np.ndarray:
    """[N, n] → 1, each variable, each product of two: [N, (n + 1)(n + 2) / 2]."""
    pairs = itertools.combinations_with_replacement(range(x.shape[1]), 2)
    return np.stack([np.ones(len(x)), *x.T, *(x[:, i] * x[:, j] for i, j in pairs)], axis=1)


def _solved(value: Callable[[float], float], target: float, step: int) -> float:
    """The common width at which a rising function is the target; at most `WIDEST`, at least an eighth of a step."""
    low, high = step / 8, float(WIDEST)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if value(middle) < target else (low, middle)
    return high


def _multiples(near: float, step: int) -> list[int]:
    """Multiples of the step around a number, from one step up."""
    middle = round(near / step)
    return [step * n for n in range(max(1, middle - REACH), max(1, middle + REACH) + 1) if step * n <= WIDEST]
