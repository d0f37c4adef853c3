"""`compare=family`: encode, decode and training of several first stages, each at the options of the command line."""

from typing import Any

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.bench import record, work
from ldmlab.bench.composed import measure
from ldmlab.config.compose import group_options, load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.timing import clock_for

PARTS = {"encode": "encode", "decode": "decode", "train": "training step"}

COLUMNS = [
    record.Column("ae", "ae"),
    record.Column("f", "f"),
    record.Column("c", "c"),
    record.Column("parameters", "parameters", lambda n: f"{n / 1e6:.2f} M"),
    *(record.Column(f"{part}_gflop_per_image", f"{name}: GFLOP/img", record.digits) for part, name in PARTS.items()),
    *(record.Column(f"{part}_images_per_second", f"{name}: img/s", record.digits) for part, name in PARTS.items()),
    record.Column("train_peak_bytes", "training: peak memory", record.mebibytes),
]


def compare_family(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: the first stages of bench.family, or all that have weights.

    Each is composed from the command's own words with `ae=` exchanged, so `ae.network.width=32` reaches every one.
    """
    known = [name for name in group_options("ae") if name != "identity" and not name.startswith("pca")]
    if wrong := [name for name in cfg.bench.family if name not in known]:
        raise ConfigError(f"bench.family={wrong}: no such first stage to measure. There are {', '.join(known)}.")
    rest = [word for word in words if not word.startswith("ae=")]
    members = [(name, load([*rest, f"ae={name}"]).cfg) for name in cfg.bench.family or known]
    report, notes = record.Report("family", COLUMNS), set()
    for name, member in members:
        record.announce(name)
        with work.any_weights(member) as (member, note):
            report.rows.append({"ae": name, **_row(member, cfg.bench.batch_size, device)})
            notes.add(note)
    size = cfg.data.resolution
    report.notes = [
        f"{size}x{size}, {clock_for(device).name}, {torch.get_num_threads()} thread(s), best of {cfg.bench.rounds}; a training "
        "step is both players', adversarial terms on",
        *filter(None, sorted(notes)),
    ]
    return report


def _row(cfg: DictConfig, batch_size: int | None, device: torch.device) -> dict[str, Any]:
    ae = build.autoencoder(cfg).to(device)
    c, height, width = ae.latent_shape(cfg.data.resolution)
    batch = batch_size or cfg.ae.fit.batch_size
    image_BCHW = torch.rand(batch, 3, cfg.data.resolution, cfg.data.resolution, device=device) * 2 - 1
    classifier = build.extractor(cfg, ()) if build.needs_classifier(cfg) else None
    loss = build.first_stage_loss(cfg, classifier).to(device)
    inputs = {"image": image_BCHW, "position": torch.arange(batch)}
    works = {
        "encode": work.encode(ae, image_BCHW),
        "decode": work.decode(ae, torch.randn(batch, c, height, width, device=device)),
        "train": work.first_stage_step(cfg, ae, loss, inputs, make_accelerator(device.type), work.AnyNoise(0)),
    }
    row: dict[str, Any] = {
        "f": ae.f,
        "c": c,
        "parameters": parameters_of(ae),
        "resolution": cfg.data.resolution,
        "batch": batch,
    }
    for part, made in works.items():
        row |= {f"{part}_{key}": value for key, value in measure(made, cfg.bench.rounds, device).items()}
    return row
