"""What a network is and costs: parameters, operations, and how many of them this machine does in a second."""

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch

UTILISATION = (
    0.35  # of a bare convolution's speed that whole training steps reach on a CPU; a rule of thumb for "about"
)


def flops_of(call: Callable[[], Any]) -> float:
    """Floating-point operations of one call (multiply and add counted as two), counted while it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = cast(Any, _Whole())  # which module an operation belongs to is not asked
    with counter:  # with gradients: sampling takes short cuts that training cannot
        call()
    return float(counter.get_total_flops())


class _Whole(contextlib.nullcontext[None]):
    """In the place of PyTorch's tracker of modules, which hooks into each of them: all operations belong to the whole."""

    parents = frozenset({"Global"})


def parameters_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def millions(count: float) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def machine_speed() -> float:
    """FLOP/s of a convolution on this machine, measured in a fraction of a second: enough for "about 4 min"."""
    import time

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(16, 64, 32, 32, device=device)
    conv = torch.nn.Conv2d(64, 64, 3, padding=1, device=device)
    flops = 2 * 16 * 64 * 64 * 9 * 32 * 32
    best = 0.0
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            conv(x)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, flops / (time.perf_counter() - start))
    return best
