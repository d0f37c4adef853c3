"""`compare=large`: a step of the denoiser on a picture of `size`, whole and in windows, unguided and guided: time, memory, their ratio."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.bench import record
from ldmlab.conditioning.compose import fit_to
from ldmlab.config.compose import with_values
from ldmlab.guidance.base import Model
from ldmlab.guidance.classifier_free import ClassifierFreeGuidance
from ldmlab.guidance.stack import Guided
from ldmlab.pipeline import large
from ldmlab.pipeline.live_memory import peak_bytes, tensors_of
from ldmlab.pipeline.resolved import Resolved, resolve
from ldmlab.pipeline.sampling_memory import peak_of
from ldmlab.pipeline.timing import clock_for, interleave, speed_ratio

SCALE = 2.0  # of classifier-free guidance

COLUMNS = [
    record.Column("what", "picture"),
    record.Column("plain_seconds", "step", record.milliseconds),
    record.Column("guided_seconds", "guided step", record.milliseconds),
    record.Column("ratio", "guided over unguided", record.with_quartiles),
    record.Column("peak_bytes", "peak of a guided step", record.mebibytes),
    record.Column("planned_bytes", "as planned", record.mebibytes),
]


def compare_large(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: the size of training, then `size` whole, then in windows (`large.window`, else of the size of training); one picture,
    random weights, guidance in one batch of 2."""
    data, val = build.dataset(cfg, "train", None), build.dataset(cfg, "val", None)
    side = cfg.large.window or data.resolution
    rows: list[dict[str, Any]] = [{"size": None, "large.window": None, "large.overlap": None}]
    if cfg.size is not None:
        rows += [{"large.window": None, "large.overlap": None}, {"large.window": side}]
    report, clock = record.Report("large", COLUMNS), clock_for(device)
    for values in rows:
        own = with_values(cfg, {**values, "eval.samples": 2, "eval.batch_size": 1, "sampler.guidance": SCALE})
        found = resolve(own, {}, data, val, Path(), scored=False)
        what = large.words(found) or f"{data.resolution}x{data.resolution}, as trained"
        record.announce(what)
        denoiser = build.denoiser(own, build.autoencoder(own), data).to(device).eval().requires_grad_(False)
        with torch.no_grad():
            works = steps(found, denoiser, device)
            seconds = interleave(works, cfg.bench.rounds, clock)
            ae_bytes = sum(t.nbytes for t in tensors_of(found.autoencoder))
            peak = peak_bytes(works["guided"], tensors_of(denoiser.network), device)
        report.rows.append(
            {
                "what": what, "plain_seconds": min(seconds["plain"]), "guided_seconds": min(seconds["guided"]),
                "ratio": speed_ratio(seconds["plain"], seconds["guided"]), "peak_bytes": peak,
                "planned_bytes": peak_of(found).step - ae_bytes,
            }
        )  # fmt: skip
    report.notes = [
        f"{clock.name}, {torch.get_num_threads()} thread(s), {cfg.bench.rounds} interleaved rounds: best seconds, median of the "
        "rounds' ratios with quartiles; memory of the denoiser and its latents alone; aim of the ratio at most 1.95"
    ]
    return report


def steps(found: Resolved, denoiser: Any, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The two evaluations that take turns: of the condition alone, and with its null condition."""
    shape = found.sampled_shape
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in found.conditions(2).batch([0]).items()}
    fit_to(denoiser.conditioner, shape[1:])
    model = Model(denoiser, found.objective, large.windows_of(found.cfg, found.autoencoder.f))
    z, t_B = torch.randn(1, *shape, device=device), torch.full((1,), found.objective.schedule.T // 2, device=device)
    works: dict[str, Callable[[], Any]] = {}
    for name, kinds in (("plain", ()), ("guided", (ClassifierFreeGuidance(found.sampler),))):
        bound = Guided(model, kinds).bind(batch, 1, shape[1:], device)
        works[name] = lambda bound=bound: bound.denoise(z, t_B, bound.cond)  # type: ignore[misc]
    return works
