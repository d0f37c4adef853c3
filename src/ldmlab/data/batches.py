"""The order of training: image number n of the run, for every n, on every rank, after any restart.

Letters: B batch, C channels, H W space. Epoch e visits the data set in a permutation seeded by (seed, e); position n is
image `permutation[e][n mod N]` with e = n // N. A step covers `batch_size` positions, cut into equal spans for the ranks
and these into micro-batches, so that no split of the work changes which image meets which noise.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ldmlab.data.base import Examples, to_batch
from ldmlab.data.fields import check_mirrors, mirror_some
from ldmlab.data.parcel import Parcel, batch_on_device
from ldmlab.randomness import Draws, seed_of

MIRROR = "mirrored"  # beside the fields of a batch, on its way: which images are mirrored


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


class Span(NamedTuple):
    """A micro-batch: its first position in the run, and the images to read."""

    begin: int
    indices: list[int]


class _Spans(Sampler[Span]):
    """One rank's micro-batches from a position on, without end."""

    def __init__(self, order: Order, start: int, batch_size: int, micro: int, rank: int, ranks: int):
        self.order, self.start, self.batch_size = order, start, batch_size
        self.micro, self.rank, self.ranks = micro, rank, ranks

    def __iter__(self) -> Iterator[Span]:
        per_rank = self.batch_size // self.ranks
        step = self.start
        while True:
            first = step + self.rank * per_rank
            for begin in range(first, first + per_rank, self.micro):
                yield Span(begin, [self.order[n] for n in range(begin, begin + self.micro)])
            step += self.batch_size


class _Reading(Dataset[Any]):
    """What is done for a micro-batch on the host, by a worker where there is one: reading, decoding, choosing the mirror images,
    packing for a device."""

    def __init__(self, dataset: Examples, draws: Draws, packed: bool):
        self.dataset, self.draws, self.packed = dataset, draws, packed

    def __getitems__(self, span: Span) -> dict[str, Any] | Parcel:
        samples = self.dataset.__getitems__(span.indices)
        batch = samples if isinstance(samples, dict) else to_batch(samples)
        if self.dataset.flip:
            position_B = torch.arange(span.begin, span.begin + len(span.indices))
            mirror_B = self.draws.rand("flip", position_B, (), "cpu") < 0.5
            texts = {name: value for name, value in batch.items() if not isinstance(value, Tensor)}
            batch = {**batch, **mirror_some(texts, self.dataset.declared, mirror_B), MIRROR: mirror_B}
        return Parcel(batch) if self.packed else batch


def _as_read(batch: Any) -> Any:
    return batch


class Batches:
    """Batches by images seen. `step(n)` gives this rank's micro-batches of the step that starts at position n.

    `micro` divides batch_size / ranks. Images come as float32 BCHW in [-1, 1] on `device`, mirrored with probability 1/2
    when the data set says `flip`, and every field with its image, as the field declares (`data.fields`); cached moments
    come with both mirrors and one is chosen by the same draw.

    A batch goes to a GPU in one copy from pinned memory, which nothing waits for. `workers` processes read ahead; how many there are
    changes no batch.

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
        device = self.device.type == "cuda"
        self._source = iter(
            DataLoader(
                _Reading(self.dataset, self.draws, packed=device),
                batch_sampler=spans,  # type: ignore[arg-type]
                collate_fn=_as_read,
                num_workers=self.workers,
                pin_memory=device and torch.cuda.is_available(),
                generator=torch.Generator().manual_seed(0),  # else the loader draws from the global generator
            )
        )

    def _prepare(self, read: dict[str, Any] | Parcel, position_B: Tensor) -> dict[str, Any]:
        batch = read.sent(self.device) if isinstance(read, Parcel) else batch_on_device(read, self.device)
        mirror_B: Tensor | None = batch.pop(MIRROR, None)
        if mirror_B is not None:
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            batch |= mirror_some(tensors, self.dataset.declared, mirror_B)
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
    """uint8 BHWC in 0…255, or uint16 in 0…65535, → float32 BCHW in [-1, 1]."""
    half = 32_767.5 if image_BHWC.dtype == torch.uint16 else 127.5
    return rearrange(image_BHWC, "b h w c -> b c h w").float().div(half).sub(1).contiguous()


def eight_bits(image: Tensor) -> Tensor:
    """uint8 as it is; uint16 divided by 257, rounded to nearest: what is looked at, and what features are taken from."""
    return ((image.int() + 128) // 257).to(torch.uint8) if image.dtype == torch.uint16 else image


def to_uint8(image_BCHW: Tensor) -> Tensor:
    """float BCHW in [-1, 1], clamped → uint8 BHWC. Rounds to nearest; the official script truncates."""
    eight_bits_BCHW = image_BCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return rearrange(eight_bits_BCHW, "b c h w -> b h w c").contiguous()
