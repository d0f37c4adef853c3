"""`compare=first_stage`: PSNR over seconds of training for several `ae=`, in one interleaved run.

Each contender trains with its own recipe in slices of equal time, in turn, so that what else the machine does falls on all of
them alike. Closed-form values count as training time; looking at val images does not.
"""

from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.bench import record
from ldmlab.config import execution
from ldmlab.config.compose import load
from ldmlab.data.base import to_batch
from ldmlab.data.batches import Batches, to_float
from ldmlab.errors import ConfigError
from ldmlab.metrics.reconstruction import psnr, to_uint8
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.sheets import spread
from ldmlab.pipeline.timing import Clock, clock_for
from ldmlab.randomness import Draws
from ldmlab.training.autoencoder_loss import AutoencoderLoss
from ldmlab.training.loop import total_steps, train_step

VAL_IMAGES = 128
FIT_BATCH = 128  # images at once in a closed-form fit


class Contender:
    """One first stage in training, by its own recipe."""

    def __init__(self, name: str, cfg: DictConfig, data: Any, device: torch.device, clock: Clock):
        if build.needs_classifier(cfg):
            raise ConfigError(f"compare=first_stage: ae={name} learns from the shapes classifier, a stage of its own.")
        self.name, self.cfg, self.data, self.clock = name, cfg, data, clock
        self.seconds, self.images = 0.0, 0
        self.accelerator = make_accelerator(device.type)
        self.ae: Autoencoder = build.autoencoder(cfg).to(device)
        began = clock.now()
        self.ae.fit_linear(self._training_images)
        self.seconds += clock.now() - began
        self.fit = cfg.ae.fit
        if self.fit is None:
            return
        if execution.channels_last(cfg, device, self.fit.precision):
            self.ae.to(memory_format=torch.channels_last)
        self.stage = AutoencoderLoss(self.ae, build.first_stage_loss(cfg, None).to(device), Draws(cfg.ae.seed))
        self.optimizers = {name: build.optimizer(module, self.fit) for name, module in self.stage.modules.items()}
        micro = execution.micro_batch(cfg, self.fit, execution.group_of(cfg))
        self.batches = Batches(data, self.fit.batch_size, micro, cfg.ae.seed, device)
        self.end = total_steps(self.fit) * self.fit.batch_size

    def _training_images(self) -> Iterator[Tensor]:
        most = self.ae.network.fit_images or len(self.data)
        indices, device = spread(len(self.data), most), self.accelerator.device
        for begin in range(0, len(indices), FIT_BATCH):
            batch = to_batch(self.data.__getitems__(indices[begin : begin + FIT_BATCH]))
            yield to_float(batch["image"].to(device))

    def train(self, until: float) -> None:
        """Steps until so many seconds were spent, or the budget is."""
        while self.fit is not None and self.seconds < until and self.images < self.end:
            began = self.clock.now()
            micros = self.batches.step(self.images)
            train_step(self.stage, micros, self.images, self.fit, self.optimizers, self.accelerator)
            self.stage.on_step_end(lambda tensor: tensor.unsqueeze(0))
            self.images += self.fit.batch_size
            self.seconds += self.clock.now() - began

    @torch.no_grad()
    def psnr(self, image_BCHW: Tensor) -> float:
        """Mean over images in dB, 8-bit rounded, of the posterior's mean."""
        self.ae.eval()
        found = [psnr(to_uint8(part), to_uint8(self.ae(part).image_BCHW)) for part in image_BCHW.split(32)]
        self.ae.train()
        return float(torch.cat(found).clamp(max=100).mean())


def compare_first_stage(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: the first stages that bench.family names (or ae=), their PSNR after each of bench.rounds shares of bench.seconds.

    Each is composed from the command's own words with `ae=` exchanged; an entry may go on with options of its own
    ("kl_f4_quick ae.network.path=none"). One whose budget is spent stands still.
    """
    names = list(cfg.bench.family) or [next((w.split("=")[1] for w in words if w.startswith("ae=")), "kl_f4_small")]
    rest = [word for word in words if not word.startswith("ae=")]
    data, val = build.dataset(cfg, "train", None), build.dataset(cfg, "val", None)
    image_BCHW = to_float(to_batch(val.__getitems__(spread(len(val), VAL_IMAGES)))["image"]).to(device)
    clock = clock_for(device)
    contenders = []
    for name in names:
        record.announce(f"{name}: closed-form start")
        own = f"ae={name}".split()
        contenders.append(Contender(name, load([*rest, *own]).cfg, data, device, clock))
    marks = [cfg.bench.seconds * turn / cfg.bench.rounds for turn in range(cfg.bench.rounds + 1)]
    curves: dict[str, list[float]] = {name: [] for name in names}
    for turn, mark in enumerate(marks):
        record.announce(f"PSNR at {mark:g} s")
        for contender in contenders[:: 1 if turn % 2 else -1]:
            contender.train(mark)
            curves[contender.name].append(contender.psnr(image_BCHW))
    columns = [
        record.Column("ae", "ae"),
        record.Column("parameters", "parameters", lambda n: f"{n / 1e6:.2f} M"),
        record.Column("images", "images"),
        record.Column("seconds", "seconds", record.digits),
        *(record.Column(f"psnr_{i}", f"{mark:g} s", lambda v: f"{v:.2f}") for i, mark in enumerate(marks)),
    ]
    rows = [
        {"ae": c.name, "parameters": parameters_of(c.ae), "images": c.images, "seconds": c.seconds, "marks": marks,
         **{f"psnr_{i}": value for i, value in enumerate(curves[c.name])}}
        for c in contenders
    ]  # fmt: skip
    notes = [
        f"PSNR in dB over {len(image_BCHW)} val images, {data.resolution}x{data.resolution}; {clock.name}, "
        f"{torch.get_num_threads()} thread(s); bench.seconds={cfg.bench.seconds:g} each, in {cfg.bench.rounds} turns; the column of "
        "0 s is the start, closed-form values included"
    ]
    return record.Report("first_stage", columns, rows, notes)
