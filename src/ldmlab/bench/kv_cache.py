"""`compare=kv_cache`: guided steps whose condition's keys and values are kept over the sampling, beside steps that read it each time.

Shape letters: B batch, C channels, H W space, L tokens, D features.
"""

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from ldmlab import build
from ldmlab.bench import record
from ldmlab.bench.unet import GUIDANCE, SHAPES
from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.compose import Compose
from ldmlab.diffusion.denoiser import Denoiser, denoise_with
from ldmlab.guidance.classifier_free import guided
from ldmlab.networks.dit import DiT
from ldmlab.networks.unet import UNet
from ldmlab.pipeline.timing import clock_for, interleave, speed_ratio

TOKENS = (1, 77)  # a class; a caption of the text-to-image model
STEPS = 4  # of one timed call, so that reading once is spread over some

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # network, channels and size of the latent
    "UNet, f8 shape": (lambda: UNet(**SHAPES["f8"].options), 4, 32),
    "UNet, f4 shape": (lambda: UNet(**SHAPES["f4"].options), 3, 64),
    "DiT-S/2": (lambda: DiT(4, 4, width=384, blocks=12, heads=6, patch=2, context_dim=512), 4, 32),
}

COLUMNS = [
    record.Column("network", "network"),
    record.Column("tokens", "tokens"),
    record.Column("batch", "batch"),
    record.Column("kept_seconds", f"kept, {STEPS} steps", record.milliseconds),
    record.Column("read_seconds", "read each time", record.milliseconds),
    record.Column("speed", "kept is faster by", record.with_quartiles),
    record.Column("difference", "outputs differ by", lambda x: f"{x:.1e}"),
]


def compare_kv_cache(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: networks × numbers of tokens."""
    objective, clock = build.objective(cfg), clock_for(device)
    batch = cfg.bench.batch_size or 1
    report = record.Report("kv_cache", COLUMNS)
    for name, (make, channels, size) in NETWORKS.items():
        torch.manual_seed(0)
        network = make().to(device).eval().requires_grad_(False)
        for parameter in network.parameters():  # zero-initialised layers too, so that every branch contributes
            parameter.copy_(torch.randn_like(parameter) * 0.02 + (parameter == 1))
        denoise = denoise_with(Denoiser(network, Compose([])), objective)
        z = torch.randn(batch, channels, size, size, device=device)
        for length in TOKENS:
            record.announce(f"{name}, {length} tokens")
            cond, null = (Cond(tokens_BLD=torch.randn(batch, length, 512, device=device)) for _ in range(2))
            works = {
                "kept": _steps(denoise, network, z, cond, null, True),
                "read": _steps(denoise, network, z, cond, null, False),
            }
            a, b = works["kept"](), works["read"]()
            seconds = interleave(works, cfg.bench.rounds, clock)
            report.rows.append(
                {
                    "network": name, "tokens": length, "batch": batch, "kept_seconds": min(seconds["kept"]),
                    "read_seconds": min(seconds["read"]), "speed": speed_ratio(seconds["kept"], seconds["read"]),
                    "difference": float((a - b).abs().max() / b.abs().max()),
                }
            )  # fmt: skip
    report.notes = [
        f"guidance {GUIDANCE:g} in one batch of 2B, {clock.name}, {torch.get_num_threads()} thread(s), {cfg.bench.rounds} "
        "interleaved rounds: median of their ratios, quartiles in brackets; tokens of 512 features"
    ]
    return report


def _steps(
    denoise: Any, network: Any, z: torch.Tensor, cond: Cond, null: Cond, kept: bool
) -> Callable[[], torch.Tensor]:
    times = torch.linspace(900, 100, STEPS, device=z.device).long()

    @torch.no_grad()
    def run() -> torch.Tensor:
        both = network.prepared(cond.cat(null)) if kept else None
        steered = guided(denoise, GUIDANCE, null, both=both)
        found = z
        for t in times:
            found = steered(found, t.expand(len(z)), cond).z0
        return found

    return run
