"""From a checked configuration to a printed and recorded measurement."""

import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from ldmlab.bench.attention import compare_attention
from ldmlab.bench.autoencoder import compare_autoencoder
from ldmlab.bench.codebook import compare_codebook
from ldmlab.bench.composed import measure_composed
from ldmlab.bench.compression import compare_compression
from ldmlab.bench.convolution import compare_convolution
from ldmlab.bench.fair import compare_fair
from ldmlab.bench.family import compare_family
from ldmlab.bench.first_stage import compare_first_stage
from ldmlab.bench.kv_cache import compare_kv_cache
from ldmlab.bench.large import compare_large
from ldmlab.bench.paper import compare_paper
from ldmlab.bench.record import Report, append
from ldmlab.bench.tiles import compare_tiles
from ldmlab.bench.unet import compare_unet
from ldmlab.errors import ConfigError
from ldmlab.pipeline.launch import keep_memory, set_threads

Measure = Callable[[DictConfig, list[str], torch.device], Report]  # configuration, the command's words, device

MEASURES: dict[str | None, Measure] = {
    None: measure_composed,
    "unet": compare_unet,
    "codebook": compare_codebook,
    "autoencoder": compare_autoencoder,
    "family": compare_family,
    "first_stage": compare_first_stage,
    "tiles": compare_tiles,
    "compression": compare_compression,
    "attention": compare_attention,
    "convolution": compare_convolution,
    "kv_cache": compare_kv_cache,
    "fair": compare_fair,
    "paper": compare_paper,
    "large": compare_large,
}


def run(cfg: DictConfig, command: str) -> Report:
    """Measure what `compare` says, print the table, append to `out` when it is given."""
    set_threads(cfg.runtime.threads)
    keep_memory()
    if cfg.out is not None and Path(cfg.out).is_dir():
        raise ConfigError(
            f"out={cfg.out} is a folder; bench.py appends JSON lines to a file, say {cfg.out}/bench.jsonl."
        )
    if cfg.runtime.processes > 1:
        raise ConfigError(f"runtime.processes={cfg.runtime.processes}: bench.py measures one process. Leave it at 1.")
    if cfg.runtime.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but torch sees no CUDA device. Use runtime.device=cpu or auto.")
    device = torch.device("cpu" if cfg.runtime.device == "cpu" or not torch.cuda.is_available() else "cuda")
    report = MEASURES[cfg.compare](cfg, shlex.split(command)[2:], device)
    print(report.text())
    if cfg.out is not None:
        append(report, Path(cfg.out), command, device)
    return report
