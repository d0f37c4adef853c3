"""Randomness as a pure function of position, so that no result depends on how it was computed.

Training draws (t, noise, dropping, posterior samples, flips) belong to the *position* of an image in the run:
image number n of all the images that the run will ever see. They are drawn in blocks of `BLOCK` consecutive positions, each
block seeded by (run seed, purpose, block index), so ranks, micro-batches, workers and restarts cannot move them.
Sampling draws belong to the *image*: each has its own generator, so image 7 is image 7 at any batch size.

Shape letters: B batch, C channels, H W space.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCK = 8  # positions that share one generator: a draw of fewer wastes at most 7, seeding costs an eighth


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any labels; equal labels give equal seeds on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `seed_of(*parts)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


class Draws:
    """Random numbers of a training run, addressed by (purpose, position).

    `position_B` holds consecutive image numbers, as `data.batches.Batches` hands them out.
    Values depend on the device's generator kind (CPU or CUDA), on nothing else.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def randn(self, purpose: str, position_B: Tensor, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Standard normal, float32, [B, *shape]."""
        return self._blocks(torch.randn, purpose, position_B, shape, device)

    def rand(self, purpose: str, position_B: Tensor, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Uniform in [0, 1), float32, [B, *shape]."""
        return self._blocks(torch.rand, purpose, position_B, shape, device)

    def _blocks(
        self,
        draw: Callable[..., Tensor],
        purpose: str,
        position_B: Tensor,
        shape: Sequence[int],
        device: torch.device | str,
    ) -> Tensor:
        first, last = int(position_B[0]), int(position_B[-1])
        if last - first + 1 != len(position_B):
            raise ValueError(f"positions must be consecutive; got {first} … {last} for {len(position_B)} images")
        drawn = [
            draw(BLOCK, *shape, generator=generator(self.seed, purpose, block, device=device), device=device)
            for block in range(first // BLOCK, last // BLOCK + 1)
        ]
        start = first - first // BLOCK * BLOCK
        return torch.cat(drawn)[start : start + len(position_B)]


def stratified(draws: Draws, purpose: str, position_B: Tensor, group: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B] on the CPU, evenly spread: one in each n-th of [0, 1) per n = `group` positions.

    Number i of group g is (u_g + i / n) mod 1 with one uniform u_g (Kingma et al. 2107.00630, App. I.1), so it depends on
    the position alone. Groups are positions g·n … g·n + n - 1.
    """
    place_B = position_B.cpu()
    group_B = place_B.div(group, rounding_mode="floor")
    u_G = draws.rand(purpose, torch.arange(int(group_B[0]), int(group_B[-1]) + 1), (), "cpu").double()
    return (u_G[group_B - group_B[0]] + (place_B % group).double() / group) % 1.0


class ImageNoise:
    """Standard normal noise with one generator per image; call it once per draw.

    The numbers are made on the CPU and moved, so a sample is the same sample on every device.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [generator("image", seed) for seed in seeds]
        self.shape = tuple(shape)
        self.device = device

    def __call__(self) -> Tensor:
        """The next draw, float32, [B, *shape]."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
