"""What each stage of a plan is, in which state, and about what it will cost: the table that a command begins with.

Networks are made on the meta device; operations are counted for `dry_run` alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.guidance.compose_denoise import share_within
from ldmlab.pipeline import steering, weights_first_stage
from ldmlab.pipeline.costs import UTILISATION, flops_of, machine_speed, millions, parameters_of
from ldmlab.pipeline.plan import Plan, Row
from ldmlab.store.checkpoint import Checkpoints
from ldmlab.store.store import Store
from ldmlab.training.loop import total_steps
from ldmlab.training.tracking import clock, number


@dataclass
class Costs:
    """Floating-point operations per image of each network's forward pass; zeros when nobody asked."""

    encode: float = 0.0
    decode: float = 0.0
    forward: float = 0.0
    weak: float = 0.0  # autoguidance's other denoiser
    classifier: float = 0.0  # of noisy latents


def _count(ae: Any, model: Any, resolution: int) -> Costs:
    """Runs the networks on the meta device (whose kernels load PyTorch's compiler: 5 s, so only a dry run asks)."""
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    z, t = torch.empty(1, *ae.latent_shape(resolution), device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    condition = model.conditioner.null(1, "meta")
    return Costs(
        flops_of(lambda: ae.moments(image)),
        flops_of(lambda: ae.decode(z)),
        flops_of(lambda: model.network(z, t, condition)),
    )


def rows_of(cfg: DictConfig, plan: Plan, data: Any, val: Any) -> list[Row]:
    """A row a stage, in the order in which they are made, as far as `until`."""
    size, n, r = data.resolution, len(data), len(val)
    with build.shapes_only():
        ae = build.autoencoder(cfg)
        model = build.denoiser(cfg, ae, data)
    c, h, w = ae.latent_shape(size)
    costs = _count(ae, model, size) if cfg.dry_run else Costs()
    fields = f" · {', '.join(data.fields)}" if data.fields else ""
    rows = [Row(plan.data, f"{number(n)} train · {number(r)} val · {size}x{size}{fields}", 0)]
    if plan.extractor:
        fit = cfg.eval.extractor_fit
        net = build.extractor(cfg)
        per_image = 3 * flops_of(lambda: net(torch.zeros(1, 3, size, size))) if cfg.dry_run else 0.0
        what = f"{plan.extractor.name} classifier {millions(parameters_of(net))}"
        rows.append(Row(plan.extractor, what, total_steps(fit) * fit.batch_size, per_image))
    rows += _first_stage_rows(cfg, plan, ae, (c, h, w), costs, min(cfg.eval.reconstructions, r))
    if plan.until == "autoencoder":
        return rows
    if plan.latents:
        mirrors, channels = 2 if data.flip else 1, ae.regulariser.channels_in(c)
        megabytes = n * mirrors * channels * h * w * (2 if cfg.latents.dtype == "float16" else 4) / 1e6
        what = f"{h}x{w}x{channels} moments{', both flips' if mirrors == 2 else ''}"
        rows.append(Row(plan.latents, what, n * mirrors, costs.encode, megabytes))
    if plan.until == "latents":
        return rows
    fit = cfg.ldm.fit
    work = 0 if fit is None else total_steps(fit) * fit.batch_size
    per_image = 3 * costs.forward + (0 if plan.latents else costs.encode)
    gigaflops = f" · {3 * costs.forward / 1e9:.3g} GFLOP/img" if costs.forward and fit is not None else ""
    origin = f"{number(work)} img" if fit is not None else f"imported from {Path(cfg.ldm.weights).name}"
    what = f"{type(model.network).__name__} {millions(parameters_of(model.network))}{gigaflops} · {origin}"
    rows.append(Row(plan.denoiser, what, work, per_image, 20 * parameters_of(model) / 1e6))
    if plan.until == "denoiser":
        return rows
    per_call = 0.0
    if plan.noisy_classifier is not None:
        fit = cfg.guidance.classifier.fit
        with build.shapes_only():
            net = build.noisy_classifier(cfg, ae, data)
        if cfg.dry_run:
            z, t = torch.empty(1, c, h, w, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
            per_call = flops_of(lambda: net(z, t))
        work, what = total_steps(fit) * fit.batch_size, f"of noisy latents {millions(parameters_of(net))}"
        per_image = 3 * per_call + (0 if plan.latents else costs.encode)
        rows.append(Row(plan.noisy_classifier, f"{what} · {number(work)} img", work, per_image))
    if plan.weak is not None and cfg.dry_run:
        with build.shapes_only():
            other = build.denoiser(plan.weak.cfg, ae, data)
        costs.weak = _count(ae, other, size).forward
    costs.classifier = per_call
    return [*rows, *_evaluation_rows(cfg, plan, size, costs)]


def _first_stage_rows(
    cfg: DictConfig, plan: Plan, ae: Any, shape: tuple[int, int, int], costs: Costs, count: int
) -> list[Row]:
    c, h, w = shape
    fit = cfg.ae.fit
    what = f"f=1 · pixels {h}x{w}x{c}"
    if parameters_of(ae):
        kind = type(ae.regulariser).__name__
        what = f"{kind} f={ae.f} c={c} · {millions(parameters_of(ae))} · latent {h}x{w}x{c}"
    both = costs.encode + costs.decode
    tuning = []
    if plan.decoder:
        budget = cfg.ae.decoder_fit
        count_ = total_steps(budget) * budget.batch_size
        tuning = [Row(plan.decoder, "decoder alone, latents frozen", count_, costs.encode + 3 * costs.decode)]
    work, per_image = (total_steps(fit) * fit.batch_size, 3 * both) if fit is not None else (0, 0.0)
    if cfg.ae.weights is not None:
        what += f" · imported from {Path(cfg.ae.weights).name}"
        work, per_image = (
            0 if cfg.ae.latent_scale.mode in weights_first_stage.UNMEASURED else cfg.ae.latent_scale.images,
            costs.encode,
        )
    return [
        Row(plan.autoencoder, what, work, per_image),
        *tuning,
        Row(plan.reconstructions, f"{number(count)} val images · PSNR SSIM rFID R-IS bits", count, both),
    ]


def _evaluation_rows(cfg: DictConfig, plan: Plan, size: int, costs: Costs) -> list[Row]:
    sampler, n = build.sampler(cfg), cfg.eval.samples
    passes = float(sampler.evaluations)
    if sampler.guidance != 1:
        schedule = build.objective(cfg).schedule
        passes *= 1 + share_within(sampler.guidance_interval, schedule, sampler.times(schedule.T)[:-1])
    evaluations = steering.evaluations(cfg)
    asked = "" if evaluations == sampler.steps else f" ({number(evaluations)} evaluations)"
    per_sample = steering.flops(cfg, costs.forward, costs.weak, costs.classifier, costs.decode, passes)
    rows = []
    for e in plan.evaluations:
        what = (
            f"{number(n)} samples · {e.samples.name} {sampler.steps}{asked} · guidance {sampler.guidance:g}"
            f"{steering.words(cfg, plan.weak)}{f' · after {number(e.images)} img' if e.images else ''}"
        )
        rows.append(Row(e.samples, what, n, per_sample, n * size * size * 3 / 1e6))
        if plan.until != "samples":
            rows.append(Row(e.scores, " ".join(m.upper() for m in cfg.eval.metrics), n))
    return rows


def state_of(row: Row, store: Store) -> str:
    """done, resumes at n %, or will run."""
    if row.address.stage == "data":
        return "ready"
    if store.done(row.address) is not None:
        return "done"
    folder = store.folder(row.address)
    if last := Checkpoints(folder).last():
        return f"resumes at {int(last.name) / max(row.images, 1):.0%}"
    if parts := list(folder.glob("part-*.npy")) + list(folder.glob("moments-*.npy")):
        return f"resumes ({len(parts)} parts)"
    return "will run"


def table(plan: Plan, store: Store, costs: bool) -> list[list[str]]:
    """Rows of text: stage, id, state, what, cost (cost only when asked: it times this machine)."""
    speed = machine_speed() * UTILISATION if costs else 0.0
    lines = [["stage", "id", "state", "what", "cost"] if costs else ["stage", "id", "state", "what"]]
    for row in plan.rows:
        state = state_of(row, store)
        line = [row.address.stage, row.address.id, state, row.what]
        if costs:
            parts = []
            if state not in ("done", "ready") and row.flops:
                parts.append(f"about {clock(row.images * row.flops / speed)}")
            if row.megabytes >= 0.1:
                parts.append(f"{row.megabytes:.3g} MB")
            line.append(" · ".join(parts))
        lines.append(line)
    return lines
