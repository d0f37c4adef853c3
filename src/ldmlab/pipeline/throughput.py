"""How long training takes an image, measured on this machine beside a reference network, and kept in the store.

A measurement is a stage folder `store/throughput/<name>-<id>/`, whose id knows the two networks, their latents and the machine, so
each pair is measured once: the same words give the same network, and so the same ids, from then on. Another machine measures again
and may choose another network. Always one CPU thread or the GPU, whatever `runtime` says, for `runtime` changes no result.

Shape letters: B batch, C channels, H W space.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_float
from ldmlab.data.parcel import batch_on_device
from ldmlab.errors import ConfigError
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.memory import free
from ldmlab.pipeline.stage import plain
from ldmlab.pipeline.timing import clock_for, interleave, speed_ratio
from ldmlab.randomness import Draws
from ldmlab.store.card import machine, stage_card
from ldmlab.store.files import read_json, write_json
from ldmlab.store.store import Address, Store
from ldmlab.training.diffusion_loss import DiffusionLoss
from ldmlab.training.ema import EMA

VERSION = 1
ROUNDS = 3  # that count, in turn with the reference
WORK = 4e10  # operations of a measured pass on a CPU, one or two seconds: with few images, small latents look slower than they are
BYTES = 28  # of memory for each parameter in training: weight, gradient, Adam's moments, average, and what an update needs in passing


class GivenLatents:
    """Stands in for a first stage where the shape of its latents is all that matters; its moments are the latents."""

    def __init__(self, f: int, c: int):
        self.f, self.c = f, c

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        return self.c, resolution // self.f, resolution // self.f

    def moments(self, image_BCHW: Tensor) -> Tensor:
        raise ConfigError("fair=time measures on given latents, and this cond encodes images itself. Use fair=flops.")

    encode = moments

    def sample(self, moments_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        return moments_BCHW

    def eval(self) -> None:
        """Nothing learns here."""

    def requires_grad_(self, requires_grad: bool = True) -> None:
        """Nothing learns here."""


class Timed(NamedTuple):
    """A network to be measured: its configuration, the shape of its latents, and its operations of training on an image."""

    cfg: DictConfig
    latents: Any  # GivenLatents, in the place of an autoencoder
    flops: float


@dataclass(frozen=True)
class Throughput:
    """record: throughput.json. ratio: seconds an image over the reference's, median of the rounds' ratios."""

    record: dict[str, Any]

    @property
    def ratio(self) -> float:
        return float(self.record["seconds_over_reference"])


def measured(cell: Timed, reference: Timed, data: Any, store: Store) -> Throughput:
    """From the store, or measured now and kept there. Raises ConfigError when a network would not fit into memory."""
    device = _device(cell.cfg)
    address = Address(
        "throughput", device.type, VERSION,
        {"cell": _described(cell, data), "reference": _described(reference, data), "machine": _machine(device)},
    )  # fmt: skip
    if not store.finished(address):
        with store.building(address):
            if not store.finished(address):  # who held the lock did it
                began, cpu = time.time(), time.process_time()
                write_json(store.folder(address) / "throughput.json", _measure(cell, reference, data, device))
                spent = None if device.type == "cuda" else time.process_time() - cpu
                card = stage_card(address, began, time.time() - began, spent, 1, device.type, {})
                write_json(store.folder(address) / "card.json", card)
                store.seal(address, time.time() - began)
    return Throughput(read_json(store.folder(address) / "throughput.json"))


def _device(cfg: DictConfig) -> torch.device:
    return torch.device("cpu" if cfg.runtime.device == "cpu" or not torch.cuda.is_available() else "cuda")


def _machine(device: torch.device) -> str:
    found = machine()
    return str(found["gpu"] if device.type == "cuda" else found["cpu"])


def _described(timed: Timed, data: Any) -> dict[str, Any]:
    """What the time of a training step is a function of, beside the machine."""
    cfg = timed.cfg
    fit = {name: cfg.ldm.fit[name] for name in ("batch_size", "precision")} | {"average": cfg.ldm.fit.ema is not None}
    shape = list(timed.latents.latent_shape(data.resolution))
    return {"network": plain(cfg.ldm.network), "cond": plain(build.conditioners(cfg)), "latent": shape, "fit": fit}


def _measure(cell: Timed, reference: Timed, data: Any, device: torch.device) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            works = {"cell": Step(cell, data, device), "reference": Step(reference, data, device)}
            calls = {f"{name} {part}": getattr(s, part) for name, s in works.items() for part in ("gradient", "update")}
            clock = clock_for(device)
            spent = interleave(calls, ROUNDS, clock)
    finally:
        torch.set_num_threads(threads)
    seconds = {
        name: [
            g / step.images + u / step.batch_size
            for g, u in zip(spent[f"{name} gradient"], spent[f"{name} update"], strict=True)
        ]
        for name, step in works.items()
    }
    ratio = speed_ratio(seconds["reference"], seconds["cell"])
    return {
        "images_per_second": 1 / min(seconds["cell"]), "reference_images_per_second": 1 / min(seconds["reference"]),
        "seconds_over_reference": ratio.median, "quartiles": [ratio.low, ratio.high], "rounds": ROUNDS,
        "flop_per_second": cell.flops / min(seconds["cell"]), "reference_flop_per_second": reference.flops / min(seconds["reference"]),
        "images": works["cell"].images, "reference_images": works["reference"].images,
        "clock": f"{clock.name}{', one thread' if device.type == 'cpu' else ''}", "machine": _machine(device),
        "torch": str(torch.__version__),
    }  # fmt: skip


class Step:
    """A training step on given latents in its two parts, which grow with other things: gradients with the images, the update with
    the parameters. A measured batch may be smaller than the real one; the update is shared by the real one's images.
    """

    def __init__(self, timed: Timed, data: Any, device: torch.device):
        cfg, latents = timed.cfg, timed.latents
        fit = self.fit = cfg.ldm.fit
        self.device, self.batch_size = device, fit.batch_size
        self.images = fit.batch_size if device.type == "cuda" else min(fit.batch_size, max(1, int(WORK / timed.flops)))
        with build.shapes_only():
            needed = BYTES * parameters_of(build.denoiser(cfg, latents, data))
        if needed > (there := free(device.type)):
            raise ConfigError(
                f"fair=time would have to measure a network that needs {needed / 1e9:,.0f} GB to train, and {there / 1e9:,.0f} GB of this "
                "machine's memory are free. Set a smaller target, or fair=flops."
            )
        self.model = build.denoiser(cfg, latents, data).to(device)
        shape = latents.latent_shape(data.resolution)
        self.loss = DiffusionLoss(
            self.model, latents, build.objective(cfg, shape[1]), Draws(0), build.drop(cfg), self.images
        )
        fields = to_batch(data.__getitems__([i % len(data) for i in range(self.images)]))
        image_BHWC = fields.pop("image")
        fields |= {"image": to_float(image_BHWC)} if "image" in self.model.conditioner.needs else {}
        self.batch = batch_on_device(fields, device)
        self.batch |= {
            "moments": torch.randn(self.images, *shape, device=device),
            "position": torch.arange(self.images),
        }
        self.optimizer = build.optimizer(self.model, fit)
        self.average = EMA(self.model, fit.ema) if fit.ema is not None else None
        self.gradient()

    def gradient(self) -> None:
        """Loss and gradients of the images."""
        self.optimizer.zero_grad(set_to_none=True)
        bf16 = self.fit.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss, _ = self.loss.loss(self.batch, "denoiser", 0)
        loss.backward()

    def update(self) -> None:
        """Clipping, optimiser, average."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.fit.clip or float("inf"))
        self.optimizer.step()
        if self.average is not None:
            self.average.update(1000)
