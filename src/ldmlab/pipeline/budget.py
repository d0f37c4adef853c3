"""The denoiser width that meets a target of size or work: `ldm.budget`, for studies at equal size or equal work.

Latent sizes change with f, and with them what one width costs; this finds, for each latent, the width that meets one target,
and says in numbers what is unequal then.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.config.compose import with_values
from ldmlab.errors import ConfigError
from ldmlab.pipeline.costs import flops_of, millions, parameters_of
from ldmlab.terminal import number

TARGETS = ("parameters", "flops_per_image", "flops_per_step")


@dataclass(frozen=True)
class Cost:
    """What a denoiser of one width costs, conditioner not included.

    Operations count multiply and add as two and a training pass as three forward passes (as the plan does).
    """

    width: int
    parameters: int
    flops_per_image: float
    flops_per_step: float  # of the whole batch


def choose_width(cfg: DictConfig, data: Any) -> tuple[DictConfig, str | None]:
    """The configuration with the `ldm.network.width` nearest to the target of `ldm.budget`, and a line that says what came out.

    The configuration itself and None without a target. Raises ConfigError for two targets, and when no width comes within
    `ldm.budget.tolerance` (relative).
    """
    targets = {name: cfg.ldm.budget[name] for name in TARGETS if cfg.ldm.budget[name] is not None}
    if not targets:
        return cfg, None
    if len(targets) > 1:
        raise ConfigError(
            f"ldm.budget takes one target, and {' and '.join(targets)} are given: one width cannot meet two. Leave one."
        )
    (name, target), tolerance = *targets.items(), cfg.ldm.budget.tolerance
    with build.shapes_only():
        widths = _network(cfg, data, cfg.ldm.network.width).widths()

    @functools.cache
    def value(nth: int) -> float:
        if name == "parameters":  # counted without running anything
            with build.shapes_only():
                return float(parameters_of(_network(cfg, data, widths[nth - 1])))
        return float(getattr(cost(cfg, data, widths[nth - 1]), name))

    nth = nearest(value, target, len(widths))
    width, off = widths[nth - 1], value(nth) / target - 1
    if abs(off) > tolerance:
        raise ConfigError(
            f"ldm.budget.{name}={target:g}: no width comes within {tolerance:.0%}. The nearest is ldm.network.width={width} "
            f"with {value(nth):.4g} ({off:+.0%}); widths go in steps of {widths.step}. "
            "Change the target, ldm.budget.tolerance or the network."
        )
    found = cost(cfg, data, width)
    return with_values(cfg, {"ldm.network.width": found.width}), (
        f"ldm.budget.{name}={target:g}: width {found.width} ({off:+.1%}). For comparison with other cells: "
        f"{millions(found.parameters)} parameters, {found.flops_per_image / 1e9:.3g} GFLOP an image, "
        f"{found.flops_per_step / 1e12:.3g} TFLOP a step of {cfg.ldm.fit.batch_size}, {number(cfg.ldm.fit.images)} images."
    )


def cost(cfg: DictConfig, data: Any, width: int) -> Cost:
    """Counted on tensors without contents: no memory, about a second for the largest networks."""
    with build.shapes_only():
        network = _network(cfg, data, width)
        ae = build.autoencoder(cfg)
        conditions = build.conditioner(cfg, data, ae)
        shape = ae.latent_shape(data.resolution)
    z, t = torch.empty(1, *shape, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    per_image = 3 * flops_of(lambda: network(z, t, conditions.null(1, shape[1:], "meta")))
    return Cost(width, parameters_of(network), per_image, per_image * cfg.ldm.fit.batch_size)


def nearest(value: Callable[[int], float], target: float, most: int) -> int:
    """The n in 1 … most whose `value(n)`, which must rise, has the ratio to `target` nearest to 1."""
    low, high = 0, 1  # value(low) < target; value(0) counts as 0
    while value(high) < target and high < most:
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle) < target else (low, middle)
    return min((n for n in (low, high) if n > 0), key=lambda n: abs(math.log(value(n) / target)))


def _network(cfg: DictConfig, data: Any, width: int) -> Any:  # a Resizable and a module
    return build.denoiser(with_values(cfg, {"ldm.network.width": width}), build.autoencoder(cfg), data).network
