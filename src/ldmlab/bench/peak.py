"""What the machine could do at best: the denominator of a utilisation."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ldmlab.pipeline.timing import clock_for

# Dense peaks of NVIDIA's data sheets, FLOP/s: bfloat16 on tensor cores, float32 outside them
KNOWN = {
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "L40S": {"bf16": 362e12, "fp32": 91.6e12},
    "RTX 4090": {"bf16": 165e12, "fp32": 82.6e12},
}


class Peak(NamedTuple):
    """FLOP/s and where the number comes from."""

    flops: float
    source: str


def peak_of(device: torch.device, precision: str) -> Peak:
    """The data sheet's number for a known GPU; else the fastest of some products of matrices and convolutions, measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((peaks for model, peaks in KNOWN.items() if model in name), None)
        if known is not None:
            return Peak(known[precision], f"data sheet of {name}, {precision}")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rates: dict[str, float] = {}
    for size in (512, 1024):
        matrix = torch.randn(size, size, device=device).to(dtype)
        rates[f"product of {size}x{size} matrices"] = 2 * size**3 / _best(lambda m=matrix: m @ m, device)  # type: ignore[misc]
    for channels, size in ((64, 32), (128, 32), (256, 16)):
        image_BCHW = torch.randn(8, channels, size, size, device=device).to(dtype)
        conv = torch.nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
        flops = 2 * 9 * channels**2 * 8 * size**2
        rates[f"3x3 convolution of {channels} channels"] = flops / _best(lambda c=conv, x=image_BCHW: c(x), device)  # type: ignore[misc]
    fastest = max(rates, key=lambda name: rates[name])
    return Peak(rates[fastest], f"{fastest}, measured on {torch.get_num_threads()} thread(s), {precision}")


@torch.no_grad()
def _best(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    now, best = clock_for(device).now, float("inf")
    for _ in range(repeats):
        began = now()
        call()
        best = min(best, now() - began)
    return best
