"""Samples: image i of a run is a function of (seed, i) and its condition, on any number of devices and at any batch size.

Letters: N images, B batch, C channels, H W space.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmlab.data.batches import to_uint8
from ldmlab.pipeline.timing import Clock, clock_for
from ldmlab.randomness import ImageNoise, seed_of
from ldmlab.samplers.start import Start
from ldmlab.store.files import atomic
from ldmlab.store.ranks import Ranks

PART = 256  # images a part file: what a kill can lose


def image_seed(seed: int, index: int) -> int:
    """The seed of one sample; written beside it, so that any image can be drawn again alone."""
    return seed_of("sample", seed, index)


def parts(n: int, rank: int, ranks: int) -> Iterator[range]:
    """The part files of one rank: consecutive images, dealt in turn."""
    for start in list(range(0, n, PART))[rank::ranks]:
        yield range(start, min(start + PART, n))


@dataclass
class Speed:
    """Seconds that the sampler and the decoder take, batch by batch. The first batch warms up and counts only where it is alone."""

    clock: Clock
    batches: list[tuple[int, float, float]] = field(
        default_factory=list
    )  # images, seconds of the sampler, of the decoder

    def record(self) -> dict[str, Any]:
        """For a card; {} where nothing was drawn."""
        counted = self.batches[1:] or self.batches
        if not counted:
            return {}
        images, sampler, decoder = (sum(column) for column in zip(*counted, strict=True))
        found = {"images": images, "sampler_seconds": round(sampler, 4), "decoder_seconds": round(decoder, 4)}
        return found | {"clock": self.clock.name, "threads": torch.get_num_threads()}


@torch.no_grad()
def draw(
    sampler: Callable[..., Tensor],
    denoise: Callable[..., Any],
    schedule: Any,
    decode: Callable[[Tensor], Tensor],
    cond: Any,
    seeds: list[int],
    shape: tuple[int, int, int],
    device: torch.device,
    noise_of: Callable[..., Callable[[], Tensor]] = ImageNoise,
    speed: Speed | None = None,
    start: Start | None = None,
) -> Tensor:
    """One image a seed, as uint8 BHWC: noise per image → sampler → decoder → 8 bits, rounded to nearest.

    noise_of: (seeds, shape, device) → noise. speed: takes in how long it took. start: images to begin from.
    """
    speed = speed or Speed(clock_for(device))
    noise = noise_of(seeds, shape, device)
    began = speed.clock.now()
    begun = {} if start is None else {"start": start}  # what is drawn in closed form knows no start
    z_BCHW = sampler(denoise, noise(), schedule, cond, noise, **begun)
    drawn = speed.clock.now()
    image8_BHWC = to_uint8(decode(z_BCHW)).cpu()
    speed.batches.append((len(seeds), drawn - began, speed.clock.now() - drawn))
    return image8_BHWC


def sample_all(
    draw_batch: Callable[[list[int]], Tensor],
    n: int,
    folder: Path,
    batch_size: int,
    ranks: Ranks,
    title: str = "samples",
) -> None:
    """Write `images.npy` (uint8 N H W 3) from part files; parts of an earlier attempt stay."""
    progress = ranks.progress(title, n)
    for part in parts(n, ranks.rank, ranks.count):
        path = part_path(folder, part.start)
        if not path.exists():
            images = torch.cat(
                [draw_batch(list(part)[begin : begin + batch_size]) for begin in range(0, len(part), batch_size)]
            )
            with atomic(path) as beside, beside.open("wb") as file:
                np.save(file, images.numpy())
        progress(len(part))
    ranks.barrier()
    if ranks.main:
        paths = [part_path(folder, start) for start in range(0, n, PART)]
        with atomic(folder / "images.npy") as beside, beside.open("wb") as file:
            np.save(file, np.concatenate([np.load(path) for path in paths]))
        for path in paths:
            path.unlink()
    ranks.barrier()


def part_path(folder: Path, start: int) -> Path:
    return folder / f"part-{start:08d}.npy"
