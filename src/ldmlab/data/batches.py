"""The order of training: image number n of the run, for every n, on every rank, after any restart.

Letters: B batch, C channels, H W space. Epoch e visits the data set in a permutation seeded by (seed, e); position n is
image `permutation[e][n mod N]` with e = n // N. A step covers `batch_size` positions, cut into equal spans for the ranks
and these into micro-batches, so that no split of the work changes which image meets which noise.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ldmlab.data.base import Examples, to_batch
from ldmlab.data.fields import check_mirrors, mirror_some
from ldmlab.randomness import Draws, seed_of


class Order:
    """position → index into the data set."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.PCG64(seed_of(self.seed, "order", epoch)))
            self._epoch, self._permutation = epoch, rng.permutation(self.length)
        return int(self._permutation[place])


class _Spans(Sampler[list[int]]):
    """Index lists of one rank's micro-batches from a position on, without end."""

    def __init__(self, order: Order, start: int, batch_size: int, micro: int, rank: int, ranks: int):
        self.order, self.start, self.batch_size = order, start, batch_size
        self.micro, self.rank, self.ranks = micro, rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        per_rank = self.batch_size // self.ranks
        step = self.start
        while True:
            first = step + self.rank * per_rank
            for begin in range(first, first + per_rank, self.micro):
                yield [self.order[n] for n in range(begin, begin + self.micro)]
            step += self.batch_size


def collate(samples: Any) -> dict[str, Any]:
    """A batch from samples; a data set that reads whole batches hands one over as it is."""
    return samples if isinstance(samples, dict) else to_batch(samples)


class Batches:
    """Batches by images seen. `step(n)` gives this rank's micro-batches of the step that starts at position n.

    `micro` divides batch_size / ranks. Images come as float32 BCHW in [-1, 1] on `device`, mirrored with probability 1/2
    when the data set says `flip`, and every field with its image, as the field declares (`data.fields`); cached moments
    come with both mirrors and one is chosen by the same draw.

    Raises ConfigError where the data set says `flip` and one of its fields does not declare what a mirror image does to it.
    """

    def __init__(
        self,
        dataset: Examples,
        batch_size: int,
        micro: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
    ):
        if batch_size % ranks or (batch_size // ranks) % micro:
            raise ValueError(f"batch {batch_size} does not split into {ranks} ranks and micro-batches of {micro}")
        if dataset.flip:
            check_mirrors(dataset.fields, dataset.declared)
        self.dataset, self.batch_size, self.micro = dataset, batch_size, micro
        self.rank, self.ranks, self.workers, self.device = rank, ranks, workers, device
        self.order, self.draws = Order(len(dataset), seed), Draws(seed)
        self._next = -1
        self._source: Iterator[dict[str, Any]] = iter(())

    def step(self, images_seen: int) -> list[dict[str, Any]]:
        if images_seen != self._next:
            self._open(images_seen)
        per_rank = self.batch_size // self.ranks
        first = images_seen + self.rank * per_rank
        micros = []
        for begin in range(first, first + per_rank, self.micro):
            position_B = torch.arange(begin, begin + self.micro)
            micros.append(self._prepare(next(self._source), position_B))
        self._next = images_seen + self.batch_size
        return micros

    def _open(self, images_seen: int) -> None:
        spans = _Spans(self.order, images_seen, self.batch_size, self.micro, self.rank, self.ranks)
        dataset = cast(Dataset[Any], self.dataset)
        self._source = iter(
            DataLoader(
                dataset,
                batch_sampler=spans,
                collate_fn=collate,
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator().manual_seed(0),  # else the loader draws from the global generator
            )
        )

    def _prepare(self, samples: dict[str, Any], position_B: Tensor) -> dict[str, Any]:
        batch = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in samples.items()}
        mirror_B = None
        if self.dataset.flip:
            drawn_B = self.draws.rand("flip", position_B, (), "cpu") < 0.5
            batch |= mirror_some(batch, self.dataset.declared, drawn_B)
            mirror_B = drawn_B.to(self.device)
        if "moments" in batch:  # B 2 C H W: as it is, mirrored
            both = batch["moments"]
            chosen = (
                both[:, 0] if mirror_B is None else torch.where(mirror_B[:, None, None, None], both[:, 1], both[:, 0])
            )
            batch["moments"] = chosen.float()
        if "image" in batch:
            image_BCHW = to_float(batch["image"])
            if mirror_B is not None:
                image_BCHW = torch.where(mirror_B[:, None, None, None], image_BCHW.flip(3), image_BCHW)
            batch["image"] = image_BCHW
        batch["position"] = position_B
        return batch


def to_float(image_BHWC: Tensor) -> Tensor:
    """uint8 BHWC in 0…255 → float32 BCHW in [-1, 1]."""
    return rearrange(image_BHWC, "b h w c -> b c h w").float().div(127.5).sub(1).contiguous()


def to_uint8(image_BCHW: Tensor) -> Tensor:
    """float BCHW in [-1, 1], clamped → uint8 BHWC. Rounds to nearest; the official script truncates."""
    eight_bits_BCHW = image_BCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return rearrange(eight_bits_BCHW, "b c h w -> b h w c").contiguous()
