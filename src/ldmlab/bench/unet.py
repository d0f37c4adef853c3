"""`compare=unet`: our UNet beside diffusers' network of equal layers and equal weights, in one interleaved run.

Shape letters: B batch, C channels, H W space, L tokens, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.bench import record
from ldmlab.bench.peer import call_peer, peer_of, peer_scheduler
from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.compose import Compose
from ldmlab.diffusion.denoiser import Denoiser, denoise_with
from ldmlab.errors import ConfigError
from ldmlab.guidance.classifier_free import guided
from ldmlab.networks.unet import UNet
from ldmlab.pipeline.costs import flops_of, parameters_of
from ldmlab.pipeline.live_memory import peak_bytes, tensors_of
from ldmlab.pipeline.timing import Clock, clock_for, interleave, speed_ratio
from ldmlab.samplers.ddim import ddim

GUIDANCE = 2.0


@dataclass(frozen=True)
class Shape:
    """A network and the size and number of its inputs."""

    options: dict[str, Any]  # UNet's
    size: int  # of the latent
    batch: int


SHAPES = {
    # 32²×3 pixels, width 64, no tokens
    "tiny": Shape(
        dict(in_channels=3, out_channels=3, width=64, multipliers=[1, 2, 2], blocks=2, attention_factors=[2],
             head_channels=64), 32, 4,
    ),
    # LDM-8 of ImageNet at half its width, heads of 32
    "f8": Shape(
        dict(in_channels=4, out_channels=4, width=128, multipliers=[1, 2, 4], blocks=2, attention_factors=[4, 2, 1],
             head_channels=32, context_dim=512), 32, 1,
    ),
    # LDM-4 of ImageNet at a third of its width, one head
    "f4": Shape(
        dict(in_channels=3, out_channels=3, width=64, multipliers=[1, 2, 3, 5], blocks=2, attention_factors=[8, 4, 2],
             heads=1, context_dim=512), 64, 1,
    ),
}  # fmt: skip

COLUMNS = [
    record.Column("shape", "shape"),
    record.Column("what", "what"),
    record.Column("batch", "batch"),
    record.Column("parameters", "parameters", lambda n: f"{n / 1e6:.1f} M"),
    record.Column("gflop_per_image", "GFLOP/img", record.digits),
    record.Column("ours_seconds", "ours, best", record.milliseconds),
    record.Column("peer_seconds", "diffusers, best", record.milliseconds),
    record.Column("speed", "ours is faster by", record.with_quartiles),
    record.Column("memory", "memory ours / diffusers", record.times),
    record.Column("difference", "outputs differ by", lambda x: f"{x:.1e}"),
]


class Pair:
    """Our network and its peer on equal inputs. Each work is {"ours": …, "peer": …}."""

    def __init__(self, shape: Shape, batch: int, objective: Any, device: torch.device):
        self.objective, self.device = objective, device
        generator = torch.Generator().manual_seed(0)
        net = UNet(**shape.options)
        with torch.no_grad():
            for parameter in net.parameters():  # zero-initialised layers too, so that every branch contributes
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02 + (parameter == 1))
        self.modules = {"ours": net.to(device), "peer": peer_of(net, shape.options, shape.size).to(device)}
        channels = shape.options["in_channels"]
        self.z_BCHW = torch.randn(batch, channels, shape.size, shape.size, generator=generator).to(device)
        self.eps_BCHW = torch.randn(self.z_BCHW.shape, generator=generator).to(device)
        self.t_B = torch.full((batch,), 500, device=device)
        dim = shape.options.get("context_dim")
        self.tokens_BLD = None if dim is None else torch.randn(batch, 1, dim, generator=generator).to(device)
        self.optimizers = {
            name: torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True) for name, module in self.modules.items()
        }

    def predict(self, name: str, z_BCHW: Tensor, t_B: Tensor, tokens_BLD: Tensor | None) -> Tensor:
        """eps by ours or by the peer, each called as its users call it."""
        if name == "ours":
            return self.modules["ours"](z_BCHW, t_B, Cond(tokens_BLD=tokens_BLD))
        return call_peer(self.modules["peer"], z_BCHW, t_B, tokens_BLD)

    def difference(self) -> float:
        """Largest difference of the outputs over the largest output. In training mode: sampling takes a short cut."""
        ours, peer = (self.predict(name, self.z_BCHW, self.t_B, self.tokens_BLD).detach() for name in self.modules)
        return float((ours - peer).abs().max() / peer.abs().max())

    def train(self, name: str, precision: str) -> None:
        """Forward, squared error, backward, AdamW, gradients freed."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out_BCHW = self.predict(name, self.z_BCHW, self.t_B, self.tokens_BLD)
            loss = (out_BCHW.float() - self.eps_BCHW).square().mean()
        loss.backward()
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)

    def ddim_ours(self, scale: float) -> None:
        """One step of our sampler on our network."""
        denoise = denoise_with(Denoiser(self.modules["ours"], Compose([])), self.objective)
        cond = Cond(tokens_BLD=self.tokens_BLD)
        if scale != 1:
            denoise = guided(denoise, scale, cond)  # which tokens stand for "nothing" does not change the work
        ddim(denoise, self.z_BCHW, [500, 480], self.objective.schedule, cond, noise=lambda: self.eps_BCHW)

    @torch.no_grad()
    def ddim_peer(self, scale: float, scheduler: Any) -> None:
        """One step of diffusers' scheduler on its network, guidance as in its pipelines."""
        z_BCHW, t_B, tokens_BLD = self.z_BCHW, self.t_B, self.tokens_BLD
        if scale != 1:
            assert tokens_BLD is not None
            z_BCHW, t_B, tokens_BLD = (torch.cat([x, x]) for x in (z_BCHW, t_B, tokens_BLD))
        eps_BCHW = self.predict("peer", z_BCHW, t_B, tokens_BLD)
        if scale != 1:
            null_BCHW, asked_BCHW = eps_BCHW.chunk(2)
            eps_BCHW = null_BCHW + scale * (asked_BCHW - null_BCHW)
        scheduler.step(eps_BCHW, 500, self.z_BCHW)

    def works(self, variant: str) -> dict[str, Callable[[], None]] | None:
        """The two works of a variant; None where the shape has nothing to guide with."""
        if variant.startswith("train"):
            precision = "bf16" if variant == "train_bf16" else "fp32"
            return {name: lambda name=name: self.train(name, precision) for name in self.modules}  # type: ignore[misc]
        scale = GUIDANCE if variant == "guided" else 1.0
        if scale != 1 and self.tokens_BLD is None:
            return None
        scheduler = peer_scheduler()
        return {"ours": lambda: self.ddim_ours(scale), "peer": lambda: self.ddim_peer(scale, scheduler)}


VARIANTS = {
    "train": "training step fp32", "train_bf16": "training step bf16",
    "ddim": "DDIM step fp32", "guided": "guided DDIM step fp32",
}  # fmt: skip


def check(cfg: DictConfig) -> None:
    """ConfigError for shapes or variants that do not exist."""
    for path, chosen, known in (
        ("bench.shapes", cfg.bench.shapes, SHAPES),
        ("bench.variants", cfg.bench.variants, VARIANTS),
    ):
        wrong = [name for name in chosen if name not in known]
        if wrong or not chosen:
            raise ConfigError(f"{path} must be one or more of {', '.join(known)}; got {list(chosen)}.")


def compare_unet(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: shapes × variants."""
    check(cfg)
    objective, clock = build.objective(cfg), clock_for(device)
    report = record.Report("unet", COLUMNS)
    for name in cfg.bench.shapes:
        shape = SHAPES[name]
        pair = Pair(shape, cfg.bench.batch_size or shape.batch, objective, device)
        about = {"shape": name, "difference": pair.difference()}
        for variant in cfg.bench.variants:
            if (works := pair.works(variant)) is not None:
                record.announce(f"{name}, {VARIANTS[variant]}")
                report.rows.append({**about, **measure(pair, variant, works, cfg.bench.rounds, clock)})
    report.notes = [
        f"{clock.name}, {torch.get_num_threads()} thread(s), {cfg.bench.rounds} interleaved rounds: median of their ratios, "
        "quartiles in brackets. Equal layers and weights, fused AdamW for both; aim at least 0.97",
        *(
            f"{name}: latent {SHAPES[name].size}x{SHAPES[name].size}, "
            + " ".join(f"{k}={v}" for k, v in SHAPES[name].options.items())
            for name in cfg.bench.shapes
        ),
    ]
    return report


def measure(
    pair: Pair, variant: str, works: dict[str, Callable[[], None]], rounds: int, clock: Clock
) -> dict[str, Any]:
    """One row."""
    seconds = interleave(works, rounds, clock)
    row = {
        "what": VARIANTS[variant], "batch": len(pair.z_BCHW), "parameters": parameters_of(pair.modules["ours"]),
        "gflop_per_image": flops_of(works["ours"]) / len(pair.z_BCHW) / 1e9, "clock": clock.name, "rounds": rounds,
        "ours_seconds": min(seconds["ours"]), "peer_seconds": min(seconds["peer"]),
        "speed": speed_ratio(seconds["ours"], seconds["peer"]),
    }  # fmt: skip
    if variant.startswith("train"):
        held = {
            name: list(tensors_of(pair.modules[name], pair.optimizers[name], pair.z_BCHW, pair.eps_BCHW))
            for name in works
        }
        peaks = {name: peak_bytes(works[name], held[name], pair.device) for name in works}
        row |= {f"{name}_bytes": peak for name, peak in peaks.items()}
        row["memory"] = peaks["ours"] / peaks["peer"]
    return row
