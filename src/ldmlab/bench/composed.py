"""`python src/bench.py` without `compare`: the speed of each part of a run, and its share of the machine's peak."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.bench import record, work
from ldmlab.bench.peak import Peak, peak_of
from ldmlab.config import execution
from ldmlab.networks.compiled import SMALL, compile_blocks
from ldmlab.pipeline import budget
from ldmlab.pipeline.context import frozen
from ldmlab.pipeline.costs import flops_of
from ldmlab.pipeline.latents import reads_cache
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.live_memory import peak_bytes
from ldmlab.pipeline.resolved import resolve
from ldmlab.pipeline.timing import clock_for, interleave
from ldmlab.store.store import Store

COLUMNS = [
    record.Column("what", "what"),
    record.Column("batch", "batch"),
    record.Column("precision", "precision"),
    record.Column("gflop_per_image", "GFLOP/img", record.digits),
    record.Column("images_per_second", "img/s", record.digits),
    record.Column("seconds", "best", record.milliseconds),
    record.Column("flop_per_second", "GFLOP/s", record.giga),
    record.Column("utilisation", "of the peak", record.percent),
    record.Column("peak_bytes", "peak memory", record.mebibytes),
]


def measure_composed(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: encode, decode, first stage's step, denoiser's step, sampler's step; real images, the loader not included."""
    data, val = build.dataset(cfg, "train", None), build.dataset(cfg, "val", None)
    cfg = budget.choose_width(cfg, data, Store(cfg.store)).cfg
    resolve(cfg, {}, data, val, Path())
    report = record.Report("composed", COLUMNS)
    peaks: dict[str, Peak] = {}
    with work.any_weights(cfg) as (cfg, note):
        for name, precision, made, compiled in _works(cfg, data, device):
            record.announce(name)
            if precision not in peaks:
                peaks[precision] = peak_of(device, precision)
            row = {"what": name, "precision": precision, **measure(made, cfg.bench.rounds, device, compiled)}
            row["utilisation"] = row["flop_per_second"] / peaks[precision].flops
            report.rows.append(row)
    report.notes = [
        f"{clock_for(device).name}, {torch.get_num_threads()} thread(s), best of {cfg.bench.rounds}; FLOPs counted while it "
        "runs, forward and backward",
        *(f"peak {precision}: {record.giga(p.flops)} GFLOP/s ({p.source})" for precision, p in peaks.items()),
    ]
    report.notes += [note] if note else []
    return report


def as_it_is() -> None:
    """Compiles nothing."""


def measure(
    made: work.Work, rounds: int, device: torch.device, compiled: Callable[[], object] = as_it_is
) -> dict[str, Any]:
    """Speed, FLOPs and memory of one work. compiled: compiles what it runs, after the FLOPs are counted (a compiled block or a
    recorded graph does not show its operations)."""
    flops = flops_of(made.run)
    compiled()
    clock = clock_for(device)
    seconds = min(interleave({"it": made.run}, rounds, clock)["it"])
    return {
        "batch": made.images, "gflop_per_image": flops / made.images / 1e9, "seconds": seconds, "rounds": rounds,
        "images_per_second": made.images / seconds, "flop_per_second": flops / seconds, "clock": clock.name,
        "peak_bytes": peak_bytes(made.run, made.held(), device),
    }  # fmt: skip


class Step(NamedTuple):
    """One row: its name, its precision, the work, and what compiles it (runtime.compile)."""

    name: str
    precision: str
    made: work.Work
    compiled: Callable[[], object] = as_it_is


def _works(cfg: DictConfig, data: Any, device: torch.device) -> Iterator[Step]:
    """Each made when its turn comes, so that the networks of the one before are gone."""
    accelerator = make_accelerator(device.type)
    ae = build.autoencoder(cfg).to(device)

    def batch_of(size: int) -> dict[str, Any]:
        return work.real_batch(data, cfg.bench.batch_size or size, device)

    many = batch_of(cfg.eval.batch_size)
    if cfg.ae.fit is not None:
        with torch.no_grad():
            z_BCHW = ae.encode(many["image"])
        yield Step("encode", "fp32", work.encode(ae, many["image"]))
        yield Step("decode", "fp32", work.decode(ae, z_BCHW))
        classifier = build.extractor(cfg, data.declared) if build.needs_classifier(cfg) else None
        loss = build.first_stage_loss(cfg, classifier).to(device)
        few = batch_of(execution.micro_batch(cfg, cfg.ae.fit, execution.group_of(cfg)))
        _laid_out(cfg, ae, device, cfg.ae.fit.precision)
        step = work.first_stage_step(cfg, ae, loss, few, accelerator, work.AnyNoise(0))
        yield Step("first stage's training step", cfg.ae.fit.precision, step, _compiles(cfg, ae, device))
        del loss, few
    frozen(ae, device)
    denoiser = build.denoiser(cfg, ae, data).to(device)
    if cfg.ldm.fit is not None:
        few = batch_of(execution.micro_batch(cfg, cfg.ldm.fit))
        cached = reads_cache(cfg, ae)
        if cached:
            with torch.no_grad():
                few["moments"] = ae.moments(few["image"])
            if "image" not in denoiser.conditioner.needs:
                few.pop("image")
        _laid_out(cfg, denoiser, device, cfg.ldm.fit.precision)
        how = ", cached latents" if cached else ", encoding on the fly" if cfg.ae.fit is not None else ""
        name = f"denoiser's training step{how}"
        positions = len(few["position"]) * math.prod(ae.latent_shape(data.resolution)[1:])
        small = positions <= SMALL and not execution.recomputes(cfg)
        step = work.denoiser_step(cfg, denoiser, ae, few, accelerator)
        yield Step(name, cfg.ldm.fit.precision, step, _compiles(cfg, denoiser, device, small))
        del step, few
        denoiser = build.denoiser(cfg, ae, data).to(
            device
        )  # samples are drawn with other graphs than those of training
    shape = ae.latent_shape(data.resolution)
    guidance = build.sampler(cfg).guidance
    name = f"sampler step{f', guidance {guidance:g}' if guidance != 1 else ''}"
    precision = "fp32" if cfg.eval is None else cfg.eval.precision  # as samples are drawn
    if precision == "bf16":
        denoiser.use_bf16(device)
    step = work.sampler_step(cfg, frozen(denoiser, device), many, shape)  # type: ignore[arg-type]

    def compiled() -> None:
        _compiles(cfg, denoiser.network, device)()
        if execution.records(cfg, device):
            denoiser.record()

    yield Step(name, precision, step, compiled)


def _laid_out(cfg: DictConfig, module: torch.nn.Module, device: torch.device, precision: str) -> None:
    """In the memory format of training (context.py)."""
    if execution.channels_last(cfg, device, precision):
        module.to(memory_format=torch.channels_last)


def _compiles(
    cfg: DictConfig, module: torch.nn.Module, device: torch.device, small: bool = False
) -> Callable[[], object]:
    """What compiles a module as training does (context.py); with CUDA graphs where its batch is small."""
    if not execution.compiles(cfg, device):
        return as_it_is
    return lambda: compile_blocks(module, graphs=small and execution.records(cfg, device))
