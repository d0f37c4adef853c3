"""What each of several processes holds and sends while a denoiser is trained: replicated (DDP), and split (runtime.shard=true).

Counted from the parameters' shapes, before anything is built. Letters: W ranks; N parameters, T ≤ N of them trained; N_r the
parameters outside all blocks (`sharding.blocks`), N_b of the largest block; k averages. A split tensor of R rows lies on the
fullest rank with ⌈R / W⌉ of them, which is its 1/W below. Bytes, in float32 whatever `fit.precision`:

                      DDP                     runtime.shard=true
    weights           4 N                     4 N / W
    gathered weights  0                       4 (N_r + 2 N_b): outside the blocks, and two blocks (one in use, the next on its way)
    gradients         4 T                     4 T / W
    buffers           4 T: the buckets        8 T_b: a block's gradients, and the same as they are sent
    optimiser         8 T; muon 4 T' + 8 (T - T'), T' of them hidden weights; split: the same / W
    averages          4 k N                   4 k N / W
    activations       what the forward pass of one micro-batch keeps for the backward pass, on both sides

Sent by each rank in a step of A micro-batches, by rings (a rank receives as much):

    DDP: one all-reduce of the gradients              2 (W - 1) / W · 4 T
    split: all-gathers                                A (W - 1) / W · 4 (N_r + 2 Σ_blocks calls · N)   forward, and again backward
           reduce-scatters of the gradients           A (W - 1) / W · 4 T
           muon: the directions of hidden weights         (W - 1) / W · 4 T'

A block is called once in a forward pass; those that read a condition are called again for the null condition where
`cond.drop` is above 0, and gathered again. Not counted: kernels' scratch memory, a first stage that encodes on the way, and
what the framework itself takes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ldmlab import build
from ldmlab.config import execution
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.pipeline.activations import activations_of
from ldmlab.pipeline.resolved import Resolved
from ldmlab.terminal import number, table
from ldmlab.training.muon import hidden_weights
from ldmlab.training.sharding import blocks

BYTES = 4  # of a float32
MOMENTS = 2  # of Adam


@dataclass(frozen=True)
class Held:
    """Bytes on the fullest rank (see above); `sent` in each step."""

    weights: int
    gathered: int
    gradients: int
    buffers: int
    optimizer: int
    averages: int
    activations: int
    sent: int

    @property
    def memory(self) -> int:
        return sum(value for name, value in vars(self).items() if name != "sent")


@dataclass(frozen=True)
class Training:
    """A denoiser's training as it is counted. micros: micro-batches of a step and rank. calls: of each block in a forward pass."""

    model: nn.Module
    muon: bool
    averages: int
    ranks: int
    micros: int
    activations: int
    calls: dict[nn.Module, int]

    def replicated(self) -> Held:
        """DDP."""
        whole, trained = _size(self.model.parameters()), _size(_trained(self.model))
        return Held(
            weights=BYTES * whole, gathered=0, gradients=BYTES * trained, buffers=BYTES * trained,
            optimizer=BYTES * (MOMENTS * trained - self._hidden(1)), averages=BYTES * self.averages * whole,
            activations=self.activations, sent=self._round(2 * trained),
        )  # fmt: skip

    def split(self) -> Held:
        """FSDP2, `training.sharding`."""
        model, n = self.model, self.ranks
        inside = {p for block in self.calls for p in block.parameters()}
        rest = [p for p in model.parameters() if p not in inside]
        largest = max((_size(block.parameters()) for block in self.calls), default=0)
        to_sum = max(_size(_trained(rest)), *(_size(_trained(block)) for block in self.calls), 0)
        whole, trained = _share(model.parameters(), n), _share(_trained(model), n)
        gathers = _share(rest, n) + sum(2 * calls * _share(b.parameters(), n) for b, calls in self.calls.items())
        return Held(
            weights=BYTES * whole, gathered=BYTES * (_size(rest) + 2 * largest), gradients=BYTES * trained,
            buffers=2 * BYTES * to_sum, optimizer=BYTES * (MOMENTS * trained - self._hidden(n)),
            averages=BYTES * self.averages * whole, activations=self.activations,
            sent=self._round(n * (self.micros * (gathers + trained) + self._hidden(n))),
        )  # fmt: skip

    def _hidden(self, ranks: int) -> int:
        """Elements of the hidden weights on a rank: muon keeps one moment of them and not two."""
        return _share(hidden_weights(self.model), ranks) if self.muon else 0

    def _round(self, elements: int) -> int:
        """Bytes that each rank sends to gather or to reduce and scatter so many elements."""
        return BYTES * elements * (self.ranks - 1) // self.ranks


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _share(parameters: Iterable[Tensor], ranks: int) -> int:
    """Elements on the fullest rank; as many are allocated and sent for every other."""
    rows = [(p.shape[0] if p.ndim else 1, p.numel()) for p in parameters]
    return sum(math.ceil(r / ranks) * (n // max(r, 1)) for r, n in rows)


def _trained(parameters: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    given = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    return [p for p in given if p.requires_grad]


# ---- a run's denoiser ----------------------------------------------------------------------------------------------------


def training_of(resolved: Resolved, ranks: int, activations: bool = True) -> Training:
    """The training of the run's denoiser on so many ranks. activations: whether they are counted, which takes seconds."""
    cfg, model = resolved.cfg, resolved.denoiser
    fit, micro = cfg.ldm.fit, execution.micro_batch(cfg, cfg.ldm.fit)
    averages = (fit.ema is not None) + len(cfg.ldm.power_ema)
    kept = activations_of(model, resolved.latent_shape, micro, fit.precision) if activations else 0
    micros = fit.batch_size // ranks // micro
    return Training(model, fit.optimizer == "muon", averages, ranks, micros, kept, calls_of(model, resolved))


def calls_of(model: Denoiser, resolved: Resolved) -> dict[nn.Module, int]:
    """How often a training's forward pass calls each block."""
    found = dict.fromkeys(blocks(model), 1)
    drop = build.drop(resolved.cfg)
    if not (any(drop) if isinstance(drop, list) else drop):
        return found

    def count(block: nn.Module, *_: Any) -> None:
        found[block] += 1

    hooks = [block.register_forward_pre_hook(count) for block in found]
    model.null(1, resolved.latent_shape[1:], "meta")
    for hook in hooks:
        hook.remove()
    return found


def needed(resolved: Resolved) -> int:
    """Bytes that a split training's fullest rank needs beside the activations."""
    return training_of(resolved, resolved.ranks, activations=False).split().memory


# ---- as a dry run prints it ----------------------------------------------------------------------------------------------

NAMES = {
    "weights": "weights", "gathered": "gathered weights", "gradients": "gradients", "buffers": "gradients to be sent",
    "optimizer": "optimiser's state", "averages": "averages", "activations": "activations", "memory": "memory, in all",
    "sent": "sent in each step",
}  # fmt: skip


def text(resolved: Resolved) -> str:
    """A table of both ways for the run's denoiser, and how its batch is cut; what a plan says below its stages."""
    counted, fit, split = training_of(resolved, resolved.ranks), resolved.cfg.ldm.fit, resolved.cfg.runtime.shard
    ways, ranks, share = (counted.replicated(), counted.split()), counted.ranks, fit.batch_size // counted.ranks
    this = " (this run)"
    lines = [
        [f"of the denoiser on each of {ranks} ranks", "DDP" + this * (not split), "runtime.shard=true" + this * split]
    ]
    lines += [[name, *(size(getattr(way, of)) for way in ways)] for of, name in NAMES.items()]
    batch = f"batch {number(fit.batch_size)} = {ranks} ranks x {number(share)} images = {ranks} x {counted.micros} micro-batches of"
    return f"{table(lines).lstrip()}\n {batch} {share // counted.micros} (runtime.micro_batch)"


def size(count: int) -> str:
    """Bytes as a person reads them: 3 digits in kB, MB or GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"
