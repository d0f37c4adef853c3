"""`compare=compression`: what one image costs the paper's ImageNet denoisers at f = 1 … 32 (Table 13), beside its FLOPs.

A study of compression compares FLOPs, which is fair only where time is proportional to them: time over FLOPs, worst f
over best, measures that.

Shape letters: B batch, C channels, H W space.
"""

from typing import Any

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.bench import record, work
from ldmlab.bench.composed import measure
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.context import frozen
from ldmlab.pipeline.costs import flops_of, parameters_of
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.timing import clock_for

FAMILY = {
    "imagenet_f1": "identity", "imagenet_f2": "vq_f2", "imagenet_f4": "vq_f4", "imagenet_f8": "vq_f8",
    "imagenet_f16": "vq_f16", "imagenet_f32": "vq_f32",
}  # fmt: skip
"""ldm: the first stage that makes its latents."""

PARTS = {"train": "training step", "ddim": "sampler step"}
MOST = 64  # images in a batch

COLUMNS = [
    record.Column("ldm", "ldm"),
    record.Column("f", "f"),
    record.Column("latent", "latent"),
    record.Column("parameters", "parameters", lambda n: f"{n / 1e6:.1f} M"),
    record.Column("what", "what"),
    record.Column("batch", "batch"),
    record.Column("gflop_per_image", "GFLOP/img", record.digits),
    record.Column("seconds_per_image", "time/img", record.milliseconds),
    record.Column("flop_per_second", "GFLOP/s", record.giga),
    record.Column("over_best", "time/FLOP over best", record.times),
]


def compare_compression(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: f × the parts that `bench.variants` has of `train` and `ddim` (both when it has neither).

    Each network is composed from the command's own words with `ldm=` and `ae=` exchanged, so `ldm.network.width=64`
    reaches every one. A batch has as many images as make the work of one image at the lowest f, at most 64.
    """
    parts = [part for part in PARTS if part in cfg.bench.variants] or list(PARTS)
    rest = [word for word in words if not word.startswith(("ae=", "ldm="))]
    members = {ldm: load([*rest, f"ldm={ldm}", f"ae={ae}"]).cfg for ldm, ae in FAMILY.items()}
    data = build.dataset(cfg, "train", None)
    flops = {ldm: _flops(member, data) for ldm, member in members.items()}
    report = record.Report("compression", COLUMNS)
    for ldm, member in members.items():
        batch = cfg.bench.batch_size or min(MOST, max(1, round(max(flops.values()) / flops[ldm])))
        for part in parts:
            record.announce(f"{ldm}, {PARTS[part]}")
            report.rows.append({"ldm": ldm, "what": PARTS[part], **_row(member, data, part, batch, device)})
    for part in parts:
        own = [row for row in report.rows if row["what"] == PARTS[part]]
        best = max(row["flop_per_second"] for row in own)
        for row in own:
            row["over_best"] = best / row["flop_per_second"]
    report.notes = [
        f"{data.resolution}x{data.resolution}, {clock_for(device).name}, {torch.get_num_threads()} thread(s), best of "
        f"{cfg.bench.rounds}; latents are given, no first stage runs; a training step has AdamW and the average in it",
        *(
            f"{PARTS[part]}: worst over best {max(r['over_best'] for r in report.rows if r['what'] == PARTS[part]):.2f}"
            for part in parts
        ),
    ]
    return report


def _flops(cfg: DictConfig, data: Any) -> float:
    """Of the network's forward pass, per image. Raises ConfigError where the resolution is too small for the family."""
    with build.shapes_only():
        ae = build.autoencoder(cfg)
        c, height, width = ae.latent_shape(data.resolution)
        model = build.denoiser(cfg, ae, data)
    if height < 2 ** (len(cfg.ldm.network.multipliers) - 1):
        raise ConfigError(
            f"data.resolution={data.resolution} leaves a latent of {height}x{width} at f={ae.f}, too small for its UNet. "
            "compare=compression needs data.resolution=128 or 256 (the paper's)."
        )
    z, t = torch.empty(1, c, height, width, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    return flops_of(lambda: model.network(z, t, model.null(1, (height, width), "meta")))


def _row(cfg: DictConfig, data: Any, part: str, images: int, device: torch.device) -> dict[str, Any]:
    with build.shapes_only():
        ae = build.autoencoder(cfg)
    shape = c, height, width = ae.latent_shape(data.resolution)
    moments = torch.randn(images, ae.regulariser.channels_in(c), height, width, device=device)
    batch: dict[str, Any] = {"moments": moments, "position": torch.arange(images)}
    if "label" in data.fields:
        batch["label"] = torch.zeros(images, dtype=torch.long, device=device)
    denoiser = build.denoiser(cfg, ae, data).to(device)
    if part == "train":
        ae = build.autoencoder(cfg).to(device)
        made = work.denoiser_step(cfg, denoiser, ae, batch, make_accelerator(device.type))
    else:
        made = work.sampler_step(cfg, frozen(denoiser, device), batch, shape)  # type: ignore[arg-type]
    about = {"f": ae.f, "latent": f"{height}x{width}x{c}", "parameters": parameters_of(denoiser.network)}
    found = measure(made, cfg.bench.rounds, device)
    return {**about, **found, "seconds_per_image": found["seconds"] / found["batch"]}
