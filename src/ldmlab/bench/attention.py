"""`compare=attention`: PyTorch's fused attention beside two matrix products, over dtypes, lengths and head sizes.

The thresholds in `networks.attention.attend` come from this table; run it again on another kind of machine.

Shape letters: B batch, N heads, L positions, D features of a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from ldmlab.bench import record
from ldmlab.networks.attention import FEW, attend, recomputed, two_products
from ldmlab.pipeline.timing import clock_for, interleave, speed_ratio


class AttentionShape(NamedTuple):
    """One attention of a network: heads, positions, features of a head, and where it stands."""

    heads: int
    positions: int
    features: int
    where: str


SHAPES = [
    AttentionShape(8, 16, 30, "compression_shapes64, f=8, half size"),
    AttentionShape(3, 64, 32, "compression_shapes64, f=4, half size"),
    AttentionShape(2, 256, 64, "32x32 pixels, width 64, at half size"),
    AttentionShape(4, 1024, 32, "LDM-8 at half its width, full size"),
    AttentionShape(12, 256, 32, "LDM-8 at half its width, half size"),
    AttentionShape(1, 1024, 384, "LDM-4, one head, half size"),
    AttentionShape(1, 256, 576, "LDM-4, one head, a quarter"),
    AttentionShape(1, 64, 960, "LDM-4, one head, an eighth"),
    AttentionShape(1, 4096, 512, "KL first stages at 256 px, f=4"),
    AttentionShape(6, 256, 64, "DiT-S/2 at 256 px"),
]

COLUMNS = [
    record.Column("where", "where"),
    record.Column("heads", "heads"),
    record.Column("positions", "positions"),
    record.Column("features", "head size"),
    record.Column("dtype", "dtype"),
    record.Column("what", "what"),
    record.Column("fused_seconds", "fused, best", record.milliseconds),
    record.Column("plain_seconds", "two products, best", record.milliseconds),
    record.Column("speed", "fused is faster by", record.with_quartiles),
    record.Column("chosen", "chosen"),
]


def compare_attention(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: shapes × {float32, bfloat16} × {forward, forward and backward}."""
    clock, batch = clock_for(device), cfg.bench.batch_size or 1
    report = record.Report("attention", COLUMNS)
    for shape in SHAPES:
        record.announce(shape.where)
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (
                torch.randn(batch, shape.heads, shape.positions, shape.features, device=device, dtype=dtype)
                for _ in range(3)
            )
            for what in ("forward", "training"):
                plain = recomputed if what == "training" and shape.positions > FEW else two_products
                kernels: dict[str, Callable[..., Tensor]] = {"fused": F.scaled_dot_product_attention, "plain": plain}
                asked = [x.requires_grad_(what == "training") for x in (q, k, v)]
                chosen = "fused" if attend(*asked).equal(kernels["fused"](*asked)) else "two products"
                works = {name: _work(kernel, (q, k, v), what == "training") for name, kernel in kernels.items()}
                seconds = interleave(works, cfg.bench.rounds, clock)
                report.rows.append(
                    {
                        **shape._asdict(), "dtype": str(dtype).removeprefix("torch."), "what": what, "batch": batch,
                        "fused_seconds": min(seconds["fused"]), "plain_seconds": min(seconds["plain"]),
                        "speed": speed_ratio(seconds["fused"], seconds["plain"]), "chosen": chosen,
                    }
                )  # fmt: skip
    report.notes = [
        f"batch {batch}, {clock.name}, {torch.get_num_threads()} thread(s), {cfg.bench.rounds} interleaved rounds: median of "
        "their ratios, quartiles in brackets"
    ]
    return report


def _work(kernel: Callable[..., Tensor], qkv: tuple[Tensor, ...], backward: bool) -> Callable[[], object]:
    leaves = [x.detach().clone().requires_grad_(backward) for x in qkv]
    seed = torch.randn_like(qkv[0])

    def forward() -> Tensor:
        with torch.no_grad():
            return kernel(*leaves)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(kernel(*leaves), leaves, seed)

    return both if backward else forward
