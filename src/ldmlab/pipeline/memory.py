"""Whether a run's networks fit into this machine's memory at all, counted on the meta device before anything is built."""

import os
from pathlib import Path

import torch
from torch import nn

from ldmlab.errors import ConfigError
from ldmlab.pipeline import per_rank
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.resolved import Resolved

BYTES = 4  # of a float32, in which weights and averages are kept whatever the training precision


def copies(fit: object) -> int:
    """Copies of each weight that a training holds: weight, gradient, two moments of Adam, the average; 1 where nothing learns."""
    if fit is None:
        return 1
    return 4 if getattr(fit, "ema", None) is None else 5


def needed(resolved: Resolved) -> dict[str, int]:
    """Option → bytes for weights, gradients, Adam's moments and averages; of one rank. Activations come on top."""
    cfg = resolved.cfg
    stages: list[tuple[str, nn.Module, object]] = [
        ("ae", resolved.autoencoder, cfg.ae.fit), ("ldm", resolved.denoiser, cfg.ldm.fit),
    ]  # fmt: skip
    found = {option: BYTES * parameters_of(module) * copies(fit) for option, module, fit in stages}
    if cfg.runtime.shard and resolved.ranks > 1 and cfg.ldm.fit is not None and not resolved.denoiser.closed_form:
        found["ldm"] = per_rank.needed(resolved)
    return found


def available(device: str) -> int:
    """Bytes of memory of the device that a run would use: the GPU's, else the machine's."""
    if device != "cpu" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free(device: str) -> int:
    """Bytes of that memory that nobody uses now: the kernel's own estimate, where it gives one."""
    if device != "cpu" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return available(device)


def complaint(resolved: Resolved) -> str | None:
    """One sentence where a network cannot fit; None where it may."""
    there = available(resolved.cfg.runtime.device)
    for option, bytes_ in needed(resolved).items():
        if bytes_ > there:
            learns = resolved.cfg[option].fit is not None
            what = "weights, gradients, Adam's moments and averages" if learns else "weights"
            return (
                f"{option}.network needs {bytes_ / 1e9:,.0f} GB for its {what}, and this machine has {there / 1e9:,.0f} GB. "
                f"Use a smaller {option}.network.width or another {option}=."
            )
    return None


def check(resolved: Resolved) -> None:
    """ConfigError where a network cannot fit into this machine's memory."""
    if found := complaint(resolved):
        raise ConfigError(found)
