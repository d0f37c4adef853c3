"""Randomness as a pure function of position, so that no result depends on how or where it was computed.

Training draws (t, noise, dropping, posterior samples, flips) belong to the *position* of an image in the run: image number n of
all the images that the run will ever see. Sampling draws belong to the *image*: image 7 is image 7 at any batch size.
Both are read from a counter-based generator (Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011): number i of a
draw is a function of (key, counter i) alone. Nothing is carried from draw to draw, so ranks, micro-batches, workers and restarts
cannot move them, and the numbers are made on the device that needs them: no copy, no synchronisation.

Only integer operations and correctly rounded +, -, ·, /, sqrt are used, each in its own kernel: the numbers are the same bits on
every device.

Shape letters: B batch, C channels, H W space, N counters.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xCD9E8D57, 0xD2511F53)  # of words (2, 0) of the counter, in the order in which they land
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key each round
ROUNDS = 10


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any labels; equal labels give equal seeds on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `seed_of(*parts)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


def philox(even_2N: Tensor, odd_2N: Tensor, key_2N: Tensor) -> Tensor:
    """Philox4x32-10: four 32-bit words per counter, int64 [4, N] in 0 … 2³² - 1.

    even_2N, odd_2N: words (0, 2) and (1, 3) of the counters; key_2N: the key's two words. All int64 in 0 … 2³² - 1, and
    broadcastable. One round: with hi, lo the halves of M₀c₀ and M₁c₂, (c₀, c₁, c₂, c₃) ← (hi₁ ⊕ c₁ ⊕ k₀, lo₁, hi₀ ⊕ c₃ ⊕ k₁, lo₀).
    A product of more than 63 bits wraps to a negative number; its halves are right all the same.
    """
    device = even_2N.device
    one, two = MULTIPLIERS
    multiplier_2N = _pair(one, two, device)
    weyl_2N = _pair(*WEYL, device)
    for _ in range(ROUNDS):
        product_2N = even_2N.flip(0) * multiplier_2N
        even_2N = (product_2N >> 32).bitwise_and_(WORD).bitwise_xor_(odd_2N).bitwise_xor_(key_2N)
        odd_2N = product_2N.bitwise_and_(WORD)
        key_2N = (key_2N + weyl_2N).bitwise_and_(WORD)
    return torch.stack([even_2N[0], odd_2N[0], even_2N[1], odd_2N[1]])


def uniform(word: Tensor) -> Tensor:
    """32-bit words → float32 in [0, 1): the upper 24 bits, each number exact."""
    return (word >> 8).float() * 2.0**-24


def normal(word: Tensor) -> Tensor:
    """32-bit words → standard normal, float32: the quantile of (word + ½) / 2³², to about 1e-6 (Wichura 1988, AS 241, PPND7).

    The words 0 … 2³¹ - 1 and their complements are mirror images, so the two tails are alike. The largest number is 6.3.
    """
    negative = word < 2**31
    inner = torch.where(negative, WORD - word, word) - 2**31  # 0 in the middle, 2³¹ - 1 at the ends
    q = (2 * inner + 1).float() * 2.0**-33  # |p - ½|
    r = 0.180625 - q * q
    top = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
    bottom = ((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0
    r = rounded_sqrt(minus_log((2 * (2**31 - 1 - inner) + 1).float() * 2.0**-33)) - 1.6
    far = ((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777
    far = far / ((0.12021132975 * r + 0.73700164250) * r + 1.0)
    size = torch.where(q <= 0.425, q * (top / bottom), far)
    return torch.where(negative, -size, size)


def minus_log(p: Tensor) -> Tensor:
    """-ln p of float32 p > 0 by correctly rounded operations alone: p = m·2ᵉ and -ln m = 2 artanh((1 - m) / (1 + m))."""
    m, e = torch.frexp(p)
    s = (1 - m) / (1 + m)  # 0 … 1/3
    square = s * s
    series = torch.full_like(s, 1 / 15)
    for odd in (13, 11, 9, 7, 5, 3, 1):
        series = series * square + 1 / odd
    return 2 * s * series - e.float() * math.log(2)


def rounded_sqrt(x: Tensor) -> Tensor:
    """The float32 nearest to the square root of float32 x.

    On a CPU PyTorch's own float32 root (MKL's vector library) is off by a last bit for some numbers, on Intel's for others than on AMD's.
    A root in float64, a last bit off or not, rounds to the right one: no root of a float32 lies so near to a midpoint. CUDA's float32
    root is rounded to nearest (its programming guide: 0 ulp), and double precision is slow there.
    """
    return x.double().sqrt().float() if x.device.type == "cpu" else x.sqrt()


class Draws:
    """Random numbers of a training run, addressed by (purpose, position).

    `position_B` holds consecutive image numbers on the CPU, as `data.batches.Batches` hands them out.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def randn(self, purpose: str, position_B: Tensor, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Standard normal, float32, [B, *shape]."""
        return normal(self._words(purpose, position_B, shape, device))

    def rand(self, purpose: str, position_B: Tensor, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Uniform in [0, 1), float32, [B, *shape]."""
        return uniform(self._words(purpose, position_B, shape, device))

    def _words(self, purpose: str, position_B: Tensor, shape: Sequence[int], device: torch.device | str) -> Tensor:
        first, last = int(position_B[0]), int(position_B[-1])
        if last - first + 1 != len(position_B):
            raise ValueError(f"positions must be consecutive; got {first} … {last} for {len(position_B)} images")
        row_B = torch.arange(first, last + 1, device=device)
        key_2B1 = _halves(seed_of(self.seed, purpose), row_B.device)[:, None, None]
        return _numbers(row_B & WORD, row_B >> 32, key_2B1, shape)


class ImageNoise:
    """Standard normal noise that belongs to each image's seed, whatever the batch; call it once per draw."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        keys = [seed_of("image", seed) for seed in seeds]
        self.key_2B1 = torch.tensor([[k & WORD for k in keys], [k >> 32 for k in keys]]).to(device)[:, :, None]
        self.shape = tuple(shape)
        self.drawn = 0

    def __call__(self) -> Tensor:
        """The next draw, float32, [B, *shape]."""
        draw_B = torch.full_like(self.key_2B1[0, :, 0], self.drawn)
        self.drawn += 1
        return normal(_numbers(draw_B, torch.zeros_like(draw_B), self.key_2B1, self.shape))


def stratified(
    draws: Draws, purpose: str, position_B: Tensor, group: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform numbers in [0, 1), float32 [B], evenly spread: one in each n-th of [0, 1) per n = `group` positions.

    Number i of group g is (u_g + i / n) mod 1 with one uniform u_g (Kingma et al. 2107.00630, App. I.1), so it depends on
    the position alone. Groups are positions g·n … g·n + n - 1.
    """
    first, last = int(position_B[0]), int(position_B[-1])
    place_B = torch.arange(first, last + 1, device=device)
    u_G = draws.rand(purpose, torch.arange(first // group, last // group + 1), (), device)
    group_B = place_B.div(group, rounding_mode="floor")
    return (u_G[group_B - first // group] + (place_B - group * group_B).float() / group) % 1.0


def _numbers(third_B: Tensor, fourth_B: Tensor, key_2B1: Tensor, shape: Sequence[int]) -> Tensor:
    """A word for each value of [B, *shape]: value i of a row is word i mod 4 of the row's counter (i // 4, 0, third, fourth)."""
    values = math.prod(shape)
    block_N = torch.arange((values + 3) // 4, device=third_B.device)
    rows = len(third_B)
    even_2BN = torch.stack([block_N.expand(rows, -1), third_B[:, None].expand(-1, len(block_N))])
    odd_2BN = torch.stack([torch.zeros_like(fourth_B), fourth_B])[:, :, None]
    word_BV = philox(even_2BN, odd_2BN, key_2B1).permute(1, 2, 0).reshape(rows, -1)
    return word_BV[:, :values].reshape(rows, *shape)


def _halves(seed: int, device: torch.device) -> Tensor:
    return _pair(seed & WORD, seed >> 32, device)[:, 0, 0]


def _pair(first: int, second: int, device: torch.device) -> Tensor:
    """[2, 1, 1] of two numbers, made on the device: no copy from the host."""
    place_2 = torch.arange(2, device=device)
    return (first + place_2 * (second - first))[:, None, None]
