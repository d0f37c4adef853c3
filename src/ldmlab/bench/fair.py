"""`compare=fair`: the denoisers that fair=flops, network, parameters and time choose at f = 1 … 32, and how fast each trains here.

Every network is measured beside the reference (`pipeline.throughput`) and kept in the store, so the table can be made in several
sittings, and a study with fair=time finds its measurements there.
"""

from typing import Any

import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.bench import record
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline import budget
from ldmlab.pipeline.throughput import GivenLatents, Timed, measured
from ldmlab.store.store import Store

FIRST_STAGES = ("identity", "pca_f2", "pca_f4", "pca_f8", "pca_f16", "pca_f32")

COLUMNS = [
    record.Column("target", "GFLOP", record.giga),
    record.Column("fair", "fair"),
    record.Column("ae", "ae"),
    record.Column("latent", "latent"),
    record.Column("sizes", "network"),
    record.Column("parameters", "parameters", lambda n: f"{n / 1e6:.3g} M"),
    record.Column("flops_per_image", "GFLOP/img", record.giga),
    record.Column("images_per_second", "img/s", record.digits),
    record.Column("flop_per_second", "GFLOP/s", record.giga),
    record.Column("flops_ratio", "FLOPs", record.times),
    record.Column("parameters_ratio", "parameters", record.times),
    record.Column("seconds_over_reference", "seconds", record.times),
    record.Column("per_flop", "seconds/FLOP", record.times),
    record.Column("refused", "refused"),
]


def compare_fair(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: `bench.targets` × `bench.modes` × the first stages `bench.family` (f = 1 … 32 when it is empty).

    Each cell is composed from the command's own words with `ae=`, `fair=` and `ldm.budget.flops_per_image=` exchanged. A first stage
    whose f leaves no latent that the network can halve is left out.
    """
    rest = [word for word in words if not word.startswith(("ae=", "fair=", "ldm.budget.flops_per_image="))]
    data, store = build.dataset(cfg, "train", None), Store(cfg.store)
    report = record.Report("fair", COLUMNS)
    for target in cfg.bench.targets:
        for mode in cfg.bench.modes:
            for ae in cfg.bench.family or FIRST_STAGES:
                record.announce(f"{target / 1e9:g} GFLOP, fair={mode}, {ae}")
                given = [f"ae={ae}", f"fair={mode}", f"ldm.budget.flops_per_image={target}"]
                report.rows.append({"target": target, "fair": mode, "ae": ae, **_row([*rest, *given], data, store)})
    report.notes = [
        f"{data.resolution}x{data.resolution}; GFLOP/img: of training, three forward passes. The four ratios are over the reference: "
        f"the network of the target on latents of f={cfg.ldm.budget.reference_f} c={cfg.ldm.budget.reference_c}",
        "img/s: of the training step, one CPU thread (CPU seconds) or the GPU, each network in turn with the reference; ratios are "
        "medians of the rounds. – : not measured",
    ]
    return report


def _row(words: list[str], data: Any, store: Store) -> dict[str, Any]:
    try:
        cfg = load(words).cfg
        choice = budget.choose_width(cfg, data, store)
    except ConfigError as error:
        return {"refused": str(error).split(": ", 1)[-1].split(". ")[0]}
    assert choice.facts is not None
    network, over = choice.facts["network"], choice.facts["over_reference"]
    c, height, width = network["latent"]
    found = {
        "latent": f"{height}x{width}x{c}", "sizes": network["sizes"], "parameters": network["parameters"],
        "flops_per_image": network["flops_per_image"], "flops_ratio": over["flops_per_image"],
        "parameters_ratio": over["parameters"],
    }  # fmt: skip
    try:
        speed = choice.facts["throughput"] or _speed(choice.cfg, cfg, data, store, network)
    except ConfigError as error:  # larger than this machine's memory
        return found | {"refused": str(error).split(": ", 1)[-1].split(". ")[0]}
    found |= {key: speed[key] for key in ("images_per_second", "flop_per_second", "seconds_over_reference")}
    return found | {"per_flop": speed["seconds_over_reference"] / over["flops_per_image"]}


def _speed(sized: DictConfig, cfg: DictConfig, data: Any, store: Store, network: dict[str, Any]) -> dict[str, Any]:
    """Of a network that was not chosen by its time."""
    on, sizes = budget.reference(cfg, data)
    base = Timed(on.with_sizes(sizes), on.latents, on.cost(sizes).flops_per_image)
    c, height, _ = network["latent"]
    cell = Timed(sized, GivenLatents(data.resolution // height, c), network["flops_per_image"])
    return measured(cell, base, data, store).record
