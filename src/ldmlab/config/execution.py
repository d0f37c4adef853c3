"""How a run is executed here: what `runtime.*` and the environment of this process mean together. Nothing here decides a result."""

import os

import torch
from omegaconf import DictConfig


def ranks(cfg: DictConfig) -> int:
    return int(os.environ.get("WORLD_SIZE", cfg.runtime.processes))


def micro_batch(cfg: DictConfig, fit: DictConfig, group: int = 1) -> int:
    """Images per forward pass and rank: the largest divisor of the rank's share that runtime.micro_batch allows.

    `group`: images that must stay together (a discriminator's statistics), so that cutting the batch changes no result.
    """
    share = fit.batch_size // ranks(cfg)
    limit = max(group, min(cfg.runtime.micro_batch or share, share))
    return next(size for size in range(limit, 0, -1) if share % size == 0 and size % group == 0)


def channels_last(cfg: DictConfig, device: torch.device, precision: str) -> bool:
    """Whether a module is trained in channels_last memory: runtime.channels_last; its `auto` is fp32 on a CPU.

    There the quick first stages gain 2 to 7 %; bf16 on a CPU loses a third (docs/log.md), and on GPUs nothing was measured.
    """
    said = cfg.runtime.channels_last
    return device.type == "cpu" and precision == "fp32" if said == "auto" else str(said).lower() == "true"


def compiles(cfg: DictConfig, device: torch.device) -> bool:
    """Whether the blocks of networks are compiled: runtime.compile; its `auto` is on a GPU."""
    said = str(cfg.runtime.compile).lower()
    return said == "true" or (said == "auto" and device.type == "cuda")


def records(cfg: DictConfig, device: torch.device) -> bool:
    """Whether calls that come again and again are recorded as CUDA graphs: runtime.compile=auto on a GPU."""
    return str(cfg.runtime.compile).lower() == "auto" and device.type == "cuda"


def recomputes(cfg: DictConfig) -> bool:
    """Whether the denoiser's activations are computed again on the way back: ldm.network.checkpointing, where the network has it."""
    return bool("checkpointing" in cfg.ldm.network and cfg.ldm.network.checkpointing)


def workers(cfg: DictConfig, device: torch.device, read_at_once: bool) -> int:
    """Loader processes of this rank: runtime.workers; its `auto` is 0 where this process has nothing better to do (a CPU trains)
    or batches are read as they lie (`read_at_once`), else the cores of a rank but one, at most 8."""
    if cfg.runtime.workers != "auto":
        return int(cfg.runtime.workers)
    if device.type == "cpu" or read_at_once:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def group_of(cfg: DictConfig) -> int:
    """Consecutive images of the first stage's batch that belong together: the discriminator's `norm_images`, else 1."""
    adversarial = cfg.ae.loss is not None and cfg.ae.loss.discriminator is not None
    return int(cfg.ae.loss.norm_images) if adversarial else 1
