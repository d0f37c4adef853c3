"""`compare=autoencoder`: one training step of the first stage, both players, beside the official code's way of doing it."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.bench import record, work
from ldmlab.bench.official import OfficialStep, official_layers
from ldmlab.config.compose import with_values
from ldmlab.errors import ConfigError
from ldmlab.pipeline.costs import flops_of, parameters_of
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.live_memory import no_numbers, peak_bytes, tensors_of
from ldmlab.pipeline.timing import clock_for, interleave, speed_ratio

OFFICIAL, OURS, CHECKPOINTING = "official", "ours", "ours, checkpointing"

COLUMNS = [
    record.Column("what", "training step"),
    record.Column("peak_bytes", "peak memory", record.mebibytes),
    record.Column("memory", "of the official", record.times),
    record.Column("held_bytes", "weights, Adam, gradients kept", record.mebibytes),
    record.Column("seconds", "best", record.milliseconds),
    record.Column("speed", "faster than official by", record.with_quartiles),
]


class Step(NamedTuple):
    """One contender: its step, and what lives in memory between steps."""

    run: Callable[[], object]
    held: Callable[[], list[Tensor]]


def compare_autoencoder(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: the official step, ours, ours with checkpointing.

    On a CPU memory is counted on tensors without contents, so any size can be counted; on a GPU it is the allocator's peak.
    Time is measured only where one step of the official way fits into bench.seconds.
    """
    if cfg.ae.fit is None:
        raise ConfigError("compare=autoencoder needs a first stage that is trained; ae=identity is not. Add ae=kl_f8.")
    if build.needs_classifier(cfg):
        raise ConfigError(
            "compare=autoencoder: the official code has no shapes distance; use ae/loss/perceptual=lpips."
        )
    batch = cfg.bench.batch_size or cfg.ae.fit.batch_size
    size = cfg.data.resolution
    with work.any_weights(cfg) as (cfg, note):
        rows: dict[str, dict[str, Any]] = {}
        for name in (OFFICIAL, OURS, CHECKPOINTING):
            record.announce(f"memory of a step, {name}")
            ae, loss = (part.to(device) for part in _parts(cfg, name))
            with no_numbers(ae, loss) if device.type == "cpu" else contextlib.nullcontext():
                step = make_step(cfg, name, ae, loss, batch, device)
                step.run()  # optimiser states exist from here on
                held = step.held()
                rows[name] = {
                    "what": name, "f": ae.f, "resolution": size, "batch": batch, "parameters": parameters_of(ae),
                    "held_bytes": sum({t.untyped_storage()._cdata: t.nbytes for t in held}.values()),
                    "peak_bytes": peak_bytes(step.run, held, device),
                }  # fmt: skip
                if name == OFFICIAL and device.type == "cpu":
                    flops = flops_of(step.run)
            del ae, loss, step, held
        seconds = _times(cfg, batch, device) if device.type == "cuda" or _fits(cfg, flops) else {}
    for name, row in rows.items():
        row["memory"] = row["peak_bytes"] / rows[OFFICIAL]["peak_bytes"]
        if seconds:
            row |= {"seconds": min(seconds[name]), "speed": speed_ratio(seconds[name], seconds[OFFICIAL])}
    report = record.Report("autoencoder", COLUMNS, list(rows.values()))
    first = rows[OFFICIAL]
    report.notes = [
        f"f={first['f']}, {first['parameters'] / 1e6:.1f} M parameters, {size}x{size}, batch {batch}, {cfg.ae.fit.precision}, "
        "both players, adversarial terms on; aim at most 0.85",
        "counted: every live tensor, without kernels' scratch; nothing was computed"
        if device.type == "cpu"
        else "the allocator's peak",
    ]
    report.notes += [note] if note else []
    if not seconds:
        report.notes.append(
            f"not timed: one official step is {flops / 1e12:.3g} TFLOP, too long here for bench.seconds={cfg.bench.seconds:g}; "
            "take a smaller bench.batch_size, data.resolution or ae.network.width"
        )
    return report


def _parts(cfg: DictConfig, name: str) -> tuple[Any, Any]:
    """Autoencoder and loss with their numbers, on the CPU."""
    cfg = with_values(cfg, {"ae.network.checkpointing": name == CHECKPOINTING})
    ae = build.autoencoder(cfg)
    return (official_layers(ae) if name == OFFICIAL else ae), build.first_stage_loss(cfg, None)


def make_step(cfg: DictConfig, name: str, ae: Any, loss: Any, batch: int, device: torch.device) -> Step:
    """A contender with its own optimisers. Call it where tensors shall have contents, or not (`no_numbers`)."""
    size = cfg.data.resolution
    image_BCHW = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    if name != OFFICIAL:
        inputs = {"image": image_BCHW, "position": torch.arange(batch)}
        mine = work.first_stage_step(cfg, ae, loss, inputs, make_accelerator(device.type), work.AnyNoise(0))
        return Step(mine.run, mine.held)
    players = {"autoencoder": ae} | ({"discriminator": loss.discriminator} if loss.discriminator is not None else {})
    fit = cfg.ae.fit
    optimizers: dict[str, torch.optim.Optimizer] = {
        player: torch.optim.Adam(module.parameters(), lr=fit.lr, betas=tuple(fit.betas))
        for player, module in players.items()
    }
    official = OfficialStep(ae, loss, optimizers)
    shape = (batch, *ae.latent_shape(size))

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=fit.precision == "bf16"):
            official(image_BCHW, torch.randn(shape, device=device) if ae.stochastic else None)

    return Step(run, lambda: list(tensors_of(ae, loss, *optimizers.values(), image_BCHW)))


def _fits(cfg: DictConfig, flops: float) -> bool:
    from ldmlab.pipeline.costs import machine_speed

    return flops / machine_speed() < cfg.bench.seconds


def _times(cfg: DictConfig, batch: int, device: torch.device) -> dict[str, list[float]]:
    record.announce("time of the steps, in turn")
    steps = {}
    for name in (OFFICIAL, OURS, CHECKPOINTING):
        ae, loss = _parts(cfg, name)
        steps[name] = make_step(cfg, name, ae.to(device), loss.to(device), batch, device).run
    return interleave(steps, cfg.bench.rounds, clock_for(device))
