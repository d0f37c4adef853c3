"""`python src/bench.py` without `compare`: the speed of each part of a run, and its share of the machine's peak."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.bench import record, work
from ldmlab.bench.peak import Peak, peak_of
from ldmlab.config import execution
from ldmlab.networks.compiled import compile_blocks
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
        for name, precision, made in _works(cfg, data, device):
            record.announce(name)
            if precision not in peaks:
                peaks[precision] = peak_of(device, precision)
            row = {"what": name, "precision": precision, **measure(made, cfg.bench.rounds, device)}
            row["utilisation"] = row["flop_per_second"] / peaks[precision].flops
            report.rows.append(row)
    report.notes = [
        f"{clock_for(device).name}, {torch.get_num_threads()} thread(s), best of {cfg.bench.rounds}; FLOPs counted while it "
        "runs, forward and backward",
        *(f"peak {precision}: {record.giga(p.flops)} GFLOP/s ({p.source})" for precision, p in peaks.items()),
    ]
    report.notes += [note] if note else []
    return report


def measure(made: work.Work, rounds: int, device: torch.device) -> dict[str, Any]:
    """Speed, FLOPs and memory of one work."""
    clock = clock_for(device)
    seconds = min(interleave({"it": made.run}, rounds, clock)["it"])
    flops = flops_of(made.run)
    return {
        "batch": made.images, "gflop_per_image": flops / made.images / 1e9, "seconds": seconds, "rounds": rounds,
        "images_per_second": made.images / seconds, "flop_per_second": flops / seconds, "clock": clock.name,
        "peak_bytes": peak_bytes(made.run, made.held(), device),
    }  # fmt: skip


def _works(cfg: DictConfig, data: Any, device: torch.device) -> Any:
    """(name, precision, work), each made when its turn comes, so that the networks of the one before are gone."""
    accelerator = make_accelerator(device.type)
    ae = build.autoencoder(cfg).to(device)

    def batch_of(size: int) -> dict[str, Any]:
        return work.real_batch(data, cfg.bench.batch_size or size, device)

    many = batch_of(cfg.eval.batch_size)
    if cfg.ae.fit is not None:
        with torch.no_grad():
            z_BCHW = ae.encode(many["image"])
        yield "encode", "fp32", work.encode(ae, many["image"])
        yield "decode", "fp32", work.decode(ae, z_BCHW)
        classifier = build.extractor(cfg, data.declared) if build.needs_classifier(cfg) else None
        loss = build.first_stage_loss(cfg, classifier).to(device)
        few = batch_of(execution.micro_batch(cfg, cfg.ae.fit, execution.group_of(cfg)))
        _prepare(cfg, ae, device, cfg.ae.fit.precision)
        draws = work.AnyNoise(0)
        name = "first stage's training step"
        yield name, cfg.ae.fit.precision, work.first_stage_step(cfg, ae, loss, few, accelerator, draws)
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
        _prepare(cfg, denoiser, device, cfg.ldm.fit.precision)
        how = ", cached latents" if cached else ", encoding on the fly" if cfg.ae.fit is not None else ""
        name = f"denoiser's training step{how}"
        yield name, cfg.ldm.fit.precision, work.denoiser_step(cfg, denoiser, ae, few, accelerator)
    shape = ae.latent_shape(data.resolution)
    guidance = build.sampler(cfg).guidance
    name = f"sampler step{f', guidance {guidance:g}' if guidance != 1 else ''}"
    yield name, "fp32", work.sampler_step(cfg, frozen(denoiser, device), many, shape)  # type: ignore[arg-type]


def _prepare(cfg: DictConfig, module: torch.nn.Module, device: torch.device, precision: str) -> None:
    """What training does to a module before it starts (context.py)."""
    if execution.channels_last(cfg, device, precision):
        module.to(memory_format=torch.channels_last)
    if execution.compiles(cfg, device):
        compile_blocks(module)
