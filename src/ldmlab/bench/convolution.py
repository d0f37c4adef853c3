"""`compare=convolution`: PyTorch's 3×3 convolution beside one matrix product, and a linear map of positions with and without a copy.

The thresholds in `networks.convolution` come from this table; run it again on another kind of machine.

Shape letters: B batch, C channels, H W space, L positions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from ldmlab.bench import record
from ldmlab.networks.convolution import as_product, is_product, positions
from ldmlab.pipeline.timing import clock_for, interleave, speed_ratio


class MapShape(NamedTuple):
    """A square feature map: positions a side, channels, and where it stands."""

    side: int
    channels: int
    where: str


SHAPES = [
    MapShape(1, 480, "32 px, f=16 at 0.29 GFLOP, half size"),
    MapShape(2, 240, "32 px, f=16 at 0.29 GFLOP, full size"),
    MapShape(2, 928, "64 px, f=32 at 1.4 GFLOP, half size"),
    MapShape(2, 480, "64 px, f=16 at 1.4 GFLOP, half size"),
    MapShape(4, 240, "64 px, f=16 at 1.4 GFLOP, full size"),
    MapShape(4, 480, "256 px, f=32, an eighth of the latent, half width"),
    MapShape(8, 120, "64 px, f=8 at 1.4 GFLOP, full size"),
]

COLUMNS = [
    record.Column("where", "where"),
    record.Column("side", "positions a side"),
    record.Column("channels", "channels"),
    record.Column("dtype", "dtype"),
    record.Column("what", "what"),
    record.Column("usual_seconds", "PyTorch's, best", record.milliseconds),
    record.Column("other_seconds", "other way, best", record.milliseconds),
    record.Column("speed", "other way is faster by", record.with_quartiles),
    record.Column("chosen", "chosen"),
]

Work = Callable[[], object]


def compare_convolution(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: shapes × {float32, bfloat16} × {convolution forward, convolution training, linear map of positions forward}."""
    clock, batch = clock_for(device), cfg.bench.batch_size or 32
    report = record.Report("convolution", COLUMNS)
    for shape in SHAPES:
        record.announce(shape.where)
        for dtype in (torch.float32, torch.bfloat16):
            h = torch.randn(batch, shape.channels, shape.side, shape.side, device=device, dtype=dtype)
            for what, (usual, other, chosen) in _ways(h).items():
                seconds = interleave({"usual": usual, "other": other}, cfg.bench.rounds, clock)
                report.rows.append(
                    {
                        **shape._asdict(), "dtype": str(dtype).removeprefix("torch."), "what": what, "batch": batch,
                        "usual_seconds": min(seconds["usual"]), "other_seconds": min(seconds["other"]),
                        "speed": speed_ratio(seconds["other"], seconds["usual"]), "chosen": chosen,
                    }
                )  # fmt: skip
    report.notes = [
        f"batch {batch}, {clock.name}, {torch.get_num_threads()} thread(s), {cfg.bench.rounds} interleaved rounds: median of "
        "their ratios, quartiles in brackets. Weights are kept in float32 and cast in each pass, as autocast does. The other "
        "way: of a convolution one product of patches and weights; of a linear map a copy of the positions first"
    ]
    return report


def _ways(h_BCHW: Tensor) -> dict[str, tuple[Work, Work, str]]:
    """Each row's usual way, other way and the one that the networks take."""
    channels, dtype = h_BCHW.shape[1], h_BCHW.dtype
    weight_OC33 = torch.randn(channels, channels, 3, 3, device=h_BCHW.device) / (3 * channels**0.5)
    linear_OC = torch.randn(3 * channels, channels, device=h_BCHW.device) / channels**0.5
    conv = "product" if is_product(h_BCHW) else "convolution"
    with torch.no_grad():
        copied = positions(h_BCHW).is_contiguous()

    def usual(h: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(h, weight.to(dtype), padding=1)

    def product(h: Tensor, weight: Tensor) -> Tensor:
        return as_product(h, weight.to(dtype), None)

    def linear(copy: bool) -> Callable[[Tensor, Tensor], Tensor]:
        def mapped(h: Tensor, weight: Tensor) -> Tensor:
            x_BLC = h.flatten(2).transpose(1, 2)
            return F.linear(x_BLC.contiguous() if copy else x_BLC, weight.to(dtype))

        return mapped

    return {
        "convolution, forward": (_forward(usual, h_BCHW, weight_OC33), _forward(product, h_BCHW, weight_OC33), conv),
        "convolution, training": (_both(usual, h_BCHW, weight_OC33), _both(product, h_BCHW, weight_OC33), conv),
        "linear map, forward": (
            _forward(linear(False), h_BCHW, linear_OC), _forward(linear(True), h_BCHW, linear_OC),
            "copied" if copied else "not copied",
        ),
    }  # fmt: skip


def _forward(way: Callable[[Tensor, Tensor], Tensor], h: Tensor, weight: Tensor) -> Work:
    def work() -> Tensor:
        with torch.no_grad():
            return way(h, weight)

    return work


def _both(way: Callable[[Tensor, Tensor], Tensor], h: Tensor, weight: Tensor) -> Work:
    leaves = [x.detach().clone().requires_grad_() for x in (h, weight)]
    seed = torch.randn_like(h)

    def work() -> tuple[Tensor, ...]:
        return torch.autograd.grad(way(*leaves), leaves, seed)

    return work
