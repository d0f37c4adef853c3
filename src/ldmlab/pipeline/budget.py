"""The denoiser's size from a target: `ldm.budget`, for studies at equal work, parameters or time, or with one network (fair=…).

Latent sizes change with f, and with them what one width costs. This finds the network of each cell and says in numbers what is
unequal then. The cells are made equal to a reference: `ldm.network` on the latents of `ldm.budget.reference_f` and `reference_c`,
sized to the target where one is given. So all four modes give the same network there.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.config.compose import with_values
from ldmlab.config.schema import TARGETS
from ldmlab.errors import ConfigError
from ldmlab.networks.unet import resolve_factors
from ldmlab.pipeline import throughput, widths
from ldmlab.pipeline.costs import flops_of, millions, parameters_of
from ldmlab.pipeline.latents import reads_cache
from ldmlab.pipeline.throughput import GivenLatents, Throughput, Timed
from ldmlab.pipeline.widths import Met, Sizes, Structure, off
from ldmlab.store.store import Store
from ldmlab.terminal import number
from ldmlab.training.loop import total_steps

if TYPE_CHECKING:
    from ldmlab.pipeline.resolved import Resolved

MEASURED = 6  # networks that a search for equal time measures at most
SAME_TIME = 0.05  # relative; measurements repeat to a few per cent, and a nearer network would follow their noise
OTHER_TIME = 0.15  # relative; a network that is off by more is refused


@dataclass(frozen=True)
class Cost:
    """What a denoiser of one width costs, conditioner not included.

    Operations count multiply and add as two and a training pass as three forward passes (as the plan does).
    """

    width: int
    parameters: int
    flops_per_image: float
    flops_per_step: float  # of the whole batch


class Choice(NamedTuple):
    """The configuration with the network that a budget chose. Without a budget: the configuration itself, None and None.

    line: what came out, for the plan. facts: the same as plain data, for cards and pages (`described`).
    """

    cfg: DictConfig
    line: str | None
    facts: dict[str, Any] | None


@dataclass(frozen=True)
class Counter:
    """Counts networks of one configuration on latents of one shape, without contents: about a tenth of a second each."""

    cfg: DictConfig
    data: Any
    latents: Any  # an autoencoder, or GivenLatents
    counted: dict[Sizes, Cost] = field(default_factory=dict)  # what was counted once

    @property
    def multipliers(self) -> tuple[int, ...]:
        """Of the network's levels; () for networks without levels."""
        network = self.cfg.ldm.network
        return tuple(network.multipliers) if "multipliers" in network else ()

    def with_sizes(self, sizes: Sizes) -> DictConfig:
        return with_values(self.cfg, sizes.options(self.multipliers))

    def network(self, sizes: Sizes) -> Any:  # a Resizable and a module
        with build.shapes_only():
            return build.denoiser(self.with_sizes(sizes), self.latents, self.data).network

    def parameters(self, sizes: Sizes) -> float:
        return float(parameters_of(self.network(sizes)))

    def cost(self, sizes: Sizes) -> Cost:
        if sizes not in self.counted:
            self.counted[sizes] = self._cost(sizes)
        return self.counted[sizes]

    def _cost(self, sizes: Sizes) -> Cost:
        network = self.network(sizes)
        with build.shapes_only():
            conditions = build.conditioner(self.cfg, self.data, self.latents)
        shape = self.latents.latent_shape(self.data.resolution)
        network.check_latent(*shape[1:])
        z, t = torch.empty(1, *shape, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
        per_image = 3 * flops_of(lambda: network(z, t, conditions.null(1, shape[1:], "meta")))
        return Cost(sizes.width, parameters_of(network), per_image, per_image * self.cfg.ldm.fit.batch_size)

    def value(self, name: str) -> Callable[[Sizes], float]:
        """Sizes → the number that the target `name` is about; parameters are counted without running anything."""
        return self.parameters if name == "parameters" else lambda sizes: float(getattr(self.cost(sizes), name))

    def configured(self) -> Sizes:
        """The sizes of `ldm.network` as it is configured."""
        network = self.cfg.ldm.network
        if "level_channels" not in network or network.level_channels is None:
            return Sizes(network.width)
        return Sizes(network.width, tuple(network.level_channels), network.blocks, network.heads, network.head_channels)

    def structure(self) -> Structure | None:
        """What a search over the levels' channels keeps; None for networks whose levels are width · multipliers alone."""
        network = self.cfg.ldm.network
        if "norm_group_channels" not in network or network.norm_group_channels is None:
            return None
        factors, sizes = (
            None if each is None else list(each) for each in (network.attention_factors, network.attention_sizes)
        )
        levels, height = len(network.multipliers), self.latents.latent_shape(self.data.resolution)[1]
        reached = resolve_factors(factors, sizes, height, levels)
        attended = tuple(i for i in range(levels) if 2**i in reached or i == levels - 1)
        return Structure(
            self.multipliers, network.norm_group_channels, network.blocks, attended, network.heads, network.head_channels
        )  # fmt: skip

    def nearest(self, name: str, target: float) -> Met:
        """The network whose `name` comes nearest to the target, however far it is off."""
        count, structure = self.value(name), self.structure()
        if structure is not None:
            return widths.search(structure, count, target, self.cfg.ldm.budget.tolerance)
        known = self.network(Sizes(self.cfg.ldm.network.width)).widths()
        value = functools.cache(lambda nth: count(Sizes(known[nth - 1])))
        nth = nearest(value, target, len(known))
        return Met(Sizes(known[nth - 1]), value(nth), None, None)

    def met(self, name: str, target: float, said: str, first: Sizes | None = None) -> Sizes:
        """The network that meets the target; `first`, where it does. ConfigError naming the nearest when none comes within
        `ldm.budget.tolerance`.
        """
        tolerance = self.cfg.ldm.budget.tolerance
        if first is not None and off(self.value(name)(first), target) <= tolerance:
            return first
        found = self.nearest(name, target)
        if off(found.value, target) <= tolerance:
            return found.sizes
        if self.structure() is None:
            steps = self.network(found.sizes).widths().step
            raise ConfigError(
                f"{said}: no width comes within {tolerance:.0%}. The nearest is ldm.network.width={found.sizes.width} "
                f"with {found.value:.4g} ({found.value / target - 1:+.0%}); widths go in steps of {steps}. "
                "Change the target, ldm.budget.tolerance or the network."
            )
        sides = [
            f"{s.words()} with {v:.4g} ({v / target - 1:+.1%})" for s, v in filter(None, (found.below, found.above))
        ]
        raise ConfigError(
            f"{said}: no channels come within {100 * tolerance:.3g} %. The nearest {'are' if len(sides) > 1 else 'is'} "
            f"{' and '.join(sides)}. Set the target to one of these, or change ldm.budget.tolerance or the network."
        )


def choose_width(cfg: DictConfig, data: Any, store: Store | None = None) -> Choice:
    """The network that `ldm.budget` asks for; `store` keeps what fair=time measures.

    Raises ConfigError for two targets, and when no network comes near enough.
    """
    budget = cfg.ldm.budget
    targets = _targets(cfg)
    if not targets and budget.fair is None:
        return Choice(cfg, None, None)
    if len(targets) > 1:
        raise ConfigError(
            f"ldm.budget takes one target, and {' and '.join(targets)} are given: one width cannot meet two. Leave one."
        )
    with build.shapes_only():
        cell = Counter(cfg, data, build.autoencoder(cfg))
    said = "".join(f"ldm.budget.{name}={target:g}" for name, target in targets.items())
    if budget.fair is None:
        ((name, target),) = targets.items()
        base, sizes, measured = None, cell.met(name, target, said), None
    else:
        said = f"fair={budget.fair}{f' {said}' if said else ''}"
        base = reference(cfg, data)
        sizes, measured = _fair(cell, *base, said, store)
    facts = described(cell, sizes, base, measured)
    return Choice(cell.with_sizes(sizes), line(cell, sizes, facts, said), facts)


def cost(cfg: DictConfig, data: Any, width: int) -> Cost:
    """Counted on tensors without contents: no memory, about a second for the largest networks."""
    with build.shapes_only():
        ae = build.autoencoder(cfg)
    return Counter(cfg, data, ae).cost(Sizes(width))


def nearest(value: Callable[[int], float], target: float, most: int) -> int:
    """The n in 1 … most whose `value(n)`, which must rise, has the ratio to `target` nearest to 1."""
    low, high = 0, 1  # value(low) < target; value(0) counts as 0
    while value(high) < target and high < most:
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle) < target else (low, middle)
    return min((n for n in (low, high) if n > 0), key=lambda n: abs(math.log(value(n) / target)))


# ---- equal to a reference ------------------------------------------------------------------------------------------------


def reference(cfg: DictConfig, data: Any) -> tuple[Counter, Sizes]:
    """What cells are made equal to: `ldm.network` on the reference latents, sized to the target where one is given."""
    budget = cfg.ldm.budget
    if data.resolution % budget.reference_f:
        raise ConfigError(
            f"ldm.budget.reference_f={budget.reference_f} does not divide data.resolution={data.resolution}. Set one that does."
        )
    on = Counter(cfg, data, GivenLatents(budget.reference_f, budget.reference_c))
    for name, target in _targets(cfg).items():
        return on, on.met(name, target, f"ldm.budget.{name}={target:g}, on the reference latents")
    return on, on.configured()


def _fair(cell: Counter, on: Counter, sizes: Sizes, said: str, store: Store | None) -> tuple[Sizes, Throughput | None]:
    """(the cell's sizes, what was measured); `on`, `sizes`: the reference."""
    mode = cell.cfg.ldm.budget.fair
    if mode == "network":
        return sizes, None
    if mode == "time":
        return _equal_time(cell, on, sizes, said, store)
    wanted = "parameters" if mode == "parameters" else "flops_per_image"
    targets = _targets(cell.cfg)
    if "flops_per_step" in targets:
        targets["flops_per_image"] = targets["flops_per_step"] / cell.cfg.ldm.fit.batch_size
    same = targets.get(wanted) or on.value(wanted)(sizes)
    return cell.met(wanted, same, said, first=sizes), None


def _targets(cfg: DictConfig) -> dict[str, float]:
    return {name: float(cfg.ldm.budget[name]) for name in TARGETS if cfg.ldm.budget[name] is not None}


def _equal_time(cell: Counter, on: Counter, sizes: Sizes, said: str, store: Store | None) -> tuple[Sizes, Throughput]:
    """The cell's network whose training takes the reference's seconds an image on this machine.

    Networks are proposed by operations, measured beside the reference, and proposed again: log seconds are taken as linear in log
    operations. What was measured stays in the store, so that the same words find the same network again.
    """
    if store is None:
        raise ConfigError(
            f"{said} measures networks and keeps what it finds in the store, which this command does not have."
        )
    base = on.cost(sizes).flops_per_image
    reference, target = Timed(on.with_sizes(sizes), on.latents, base), base
    latents = GivenLatents(cell.latents.f, cell.latents.c)
    if (latents.f, latents.c) == (on.latents.f, on.latents.c):  # the same network, whatever a clock says
        return sizes, throughput.measured(reference, reference, cell.data, store)
    tried: dict[Sizes, tuple[float, Throughput]] = {}
    for _ in range(MEASURED):
        found = cell.nearest("flops_per_image", target)
        if found.sizes in tried:
            break
        timed = Timed(cell.with_sizes(found.sizes), latents, found.value)
        tried[found.sizes] = found.value, throughput.measured(timed, reference, cell.data, store)
        if off(tried[found.sizes][1].ratio, 1) <= SAME_TIME:
            break
        target = _proposal([(math.log(flops), math.log(time.ratio)) for flops, time in tried.values()])
    best = min(tried, key=lambda each: off(tried[each][1].ratio, 1))
    if off(tried[best][1].ratio, 1) > OTHER_TIME:
        raise ConfigError(
            f"{said}: no network of this structure takes the reference's time within {OTHER_TIME:.0%}. The nearest is {best.words()}, "
            f"{tried[best][1].ratio:.2f} times it. Change the target or the network."
        )
    return best, tried[best][1]


def _proposal(points: list[tuple[float, float]]) -> float:
    """Operations at which log (seconds over the reference's) should be 0, from (log operations, that logarithm)."""
    below = max((p for p in points if p[1] < 0), default=None, key=lambda p: p[1])
    above = min((p for p in points if p[1] >= 0), default=None, key=lambda p: p[1])
    if below is None or above is None or above[0] <= below[0]:
        x, y = min(points, key=lambda p: abs(p[1]))
        return math.exp(x - y)
    return math.exp(below[0] - below[1] * (above[0] - below[0]) / (above[1] - below[1]))


# ---- what came out -------------------------------------------------------------------------------------------------------


def described(
    cell: Counter,
    sizes: Sizes,
    reference: tuple[Counter, Sizes] | None,
    measured: Throughput | None,
) -> dict[str, Any]:
    """network, reference: sizes in words, parameters, operations of training on an image; over_reference: their ratios.

    throughput: what fair=time measured, else None.
    """

    def facts(counter: Counter, of: Sizes) -> dict[str, Any]:
        found = counter.cost(of)
        shape = list(counter.latents.latent_shape(counter.data.resolution))
        return {
            "sizes": of.words(), "typed": of.typed(cell.multipliers), "latent": shape, "parameters": found.parameters,
            "flops_per_image": found.flops_per_image,
        }  # fmt: skip

    network = facts(cell, sizes)
    found = {"fair": cell.cfg.ldm.budget.fair, "target": _targets(cell.cfg), "network": network, "reference": None}
    found |= {"over_reference": None, "throughput": None if measured is None else measured.record}
    if reference is None:
        return found
    base = facts(*reference)
    ratios = {name: network[name] / base[name] for name in ("parameters", "flops_per_image")}
    ratios["seconds_per_image"] = None if measured is None else measured.ratio
    latents = reference[0].latents
    return found | {"reference": {"f": latents.f, "c": latents.c, **base}, "over_reference": ratios}


def line(cell: Counter, sizes: Sizes, facts: dict[str, Any], said: str) -> str:
    """What a budget chose and what is unequal then, for the plan."""
    fit, network = cell.cfg.ldm.fit, facts["network"]
    flops = network["flops_per_image"]
    ((name, target),) = facts["target"].items() or {"": 0.0}.items()
    value = (
        network["parameters"] if name == "parameters" else flops * (fit.batch_size if name == "flops_per_step" else 1)
    )
    same = {None: TARGETS, "parameters": TARGETS[:1], "flops": TARGETS[1:]}.get(facts["fair"], ())
    near = f" ({value / target - 1:+.1%})" if name in same else ""
    lines = [
        f"{said}: {sizes.words()}{near}. For comparison with other cells: {millions(network['parameters'])} parameters, "
        f"{flops / 1e9:.3g} GFLOP an image, {flops * fit.batch_size / 1e12:.3g} TFLOP a step of {fit.batch_size}, "
        f"{number(fit.images)} images."
    ]
    if (base := facts["reference"]) is not None:
        ratio = facts["over_reference"]
        seconds = ratio["seconds_per_image"]
        lines.append(
            f"over the reference (f={base['f']} c={base['c']}: {base['sizes']}, {millions(base['parameters'])} parameters, "
            f"{base['flops_per_image'] / 1e9:.3g} GFLOP an image): FLOPs × {ratio['flops_per_image']:.3g}, parameters × "
            f"{ratio['parameters']:.3g}, seconds an image {'not measured' if seconds is None else f'× {seconds:.3g}'}"
        )
    if (speed := facts["throughput"]) is not None:
        lines.append(
            f"measured on {speed['machine']} ({speed['clock']}): {speed['images_per_second']:.3g} images/s of the training step, the "
            f"reference {speed['reference_images_per_second']:.3g}; elsewhere type {network['typed']} for the same network"
        )
    return "\n ".join(lines)


def totals(resolved: "Resolved") -> dict[str, float]:
    """Operations of a run's trainings: denoiser; first_stage; encoding, of the images that the denoiser learns from."""
    costs, cfg, data = resolved.costs, resolved.cfg, resolved.data
    before = before_denoiser(cfg, resolved.autoencoder, len(data) * (2 if data.flip else 1), costs.encode, costs.decode)
    return {"denoiser": costs.training * _images(cfg.ldm.fit), **before}


def before_denoiser(cfg: DictConfig, ae: Any, images: int, encode: float, decode: float) -> dict[str, float]:
    """What is computed before a denoiser learns. images: of training, mirrored ones too; encode, decode: operations an image.

    A first stage's training counts as three passes through encoder and decoder; networks of its loss are not counted.
    """
    own = 0.0 if cfg.ae.fit is None else 3 * (encode + decode) * _images(cfg.ae.fit)
    encoded = images if reads_cache(cfg, ae) else _images(cfg.ldm.fit)
    return {"first_stage": own, "encoding": encode * encoded}


def totals_line(training: dict[str, float]) -> str:
    """`totals`, for the plan."""
    own, first, encoding = (training[name] / 1e12 for name in ("denoiser", "first_stage", "encoding"))
    return (
        f"training of the denoiser: {own:.3g} TFLOP; with the first stage {own + first + encoding:.3g} (its training {first:.3g}, "
        f"encoding {encoding:.3g})"
    )


def _images(fit: Any) -> int:
    return total_steps(fit) * int(fit.batch_size)
