"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505, Sec. 3 and App. A.1): no codebook, each channel rounded
to one of a few levels.

Shape letters: B batch, C channels, H W space, K codes.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from ldmlab.autoencoders.regularisers.base import Posterior, Regularised, Regulariser, counted, usage, widen
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Items, Range

EPS = 1e-3  # keeps tanh's range a little beyond the outermost levels, as in the paper's code


class FSQ(Regulariser):
    """Channel i is squashed to (−1, 1) so that L_i levels fit, and rounded to the nearest; K = ∏ L_i codes; no loss.

    c       latent channels (passed by build, not an option)
    levels  L_1 … L_c, each at least 2. The paper's: [8, 6, 5] (240 codes), [8, 5, 5, 5] (1 000), [7, 5, 5, 5, 5] (4 375)
    zero    where h = 0 falls in a channel of even L. level: on a level, as in the paper. border: between its two middle levels,
            which is what L = 2 needs: there the paper's shift is artanh(0.999) = 3.8, so that h has to go below −3.8 for the
            second level, and the gradient at 0 is 0.002

    Levels are −⌊L/2⌋ … ⌈L/2⌉ − 1, divided by ⌊L/2⌋. The latent that diffusion sees is the squashed vector *before*
    rounding; rounding is the decoder's first step, as for VQ.

    Raises ConfigError when `levels` does not name one number a channel.
    """

    stochastic = False
    quantises = True
    half_C: Tensor
    levels_C: Tensor

    def __init__(
        self,
        c: Annotated[int, Given],
        levels: Annotated[Sequence[Annotated[int, Range(at_least=2, at_most=4_096)]], Items(1, 64)],
        zero: Literal["level", "border"] = "level",
    ):
        super().__init__()
        if len(levels) != c:
            raise ConfigError(
                f"ae.regulariser.levels={list(levels)} names {len(levels)} channels, but ae.network.c={c}. "
                f"Give one number of levels a channel, or set ae.network.c={len(levels)}."
            )
        if min(levels) < 2:
            raise ConfigError(f"ae.regulariser.levels={list(levels)} must all be at least 2.")
        self.codes, self.zero = math.prod(levels), zero
        self.register_buffer("levels_C", torch.tensor(list(levels)), persistent=False)
        self.register_buffer("half_C", torch.div(self.levels_C, 2, rounding_mode="floor"), persistent=False)

    def channels_in(self, c: int) -> int:
        """c: one number a channel."""
        return c

    def forward(self, h_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Regularised:
        """Rounded vectors with the straight-through gradient, no loss, usage and perplexity in this batch."""
        bound_BCHW = self.sample(h_BCHW)
        rounded_BCHW = self.project(bound_BCHW)
        z_BCHW = bound_BCHW + (rounded_BCHW - bound_BCHW).detach()
        return Regularised(z_BCHW, h_BCHW.new_zeros(()), usage(self._count(rounded_BCHW)))

    def sample(self, h_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """tanh(h + shift) · r − offset, over ⌊L/2⌋, with r = (L − 1)(1 + ε)/2: about [−1, 1].

        offset is ½ for an even L, whose levels lie asymmetrically; shift = artanh(offset / r) makes h = 0 fall on 0, and without
        it (zero=border) on −½.
        """
        r_C = (self.levels_C - 1) * (1 + EPS) / 2
        offset_C = torch.where(self.levels_C % 2 == 0, 0.5, 0.0)
        shift_C = torch.atanh(offset_C / r_C) if self.zero == "level" else torch.zeros_like(r_C)
        shape = (-1, 1, 1)
        bound_BCHW = torch.tanh(widen(h_BCHW) + shift_C.view(shape)) * r_C.view(shape) - offset_C.view(shape)
        return bound_BCHW / self.half_C.view(shape)

    def posterior(self, h_BCHW: Tensor) -> Posterior:
        return Posterior(self.sample(h_BCHW), None)

    def project(self, z_BCHW: Tensor) -> Tensor:
        """Each channel at the nearest of its levels."""
        half_C11 = self.half_C.view(-1, 1, 1)
        low_C11, high_C11 = -half_C11, (self.levels_C - 1 - self.half_C).view(-1, 1, 1)
        level_BCHW = (widen(z_BCHW) * half_C11).round()
        return torch.minimum(torch.maximum(level_BCHW, low_C11), high_C11) / half_C11

    def indices(self, z_BCHW: Tensor) -> Tensor:
        """Number of the code of rounded vectors, int64 [B, H, W] in 0…K−1; the first channel counts fastest."""
        digit_BCHW = (z_BCHW * self.half_C.view(-1, 1, 1)).round().long() + self.half_C.view(-1, 1, 1)
        basis_C = torch.cumprod(self.levels_C, 0) // self.levels_C
        return (digit_BCHW * basis_C.view(-1, 1, 1)).sum(1)

    def counts(self, h_BCHW: Tensor) -> Tensor:
        """How often each code is used, int64 [K]."""
        return self._count(self.project(self.sample(h_BCHW)))

    def _count(self, rounded_BCHW: Tensor) -> Tensor:
        return counted(self.indices(rounded_BCHW.detach()), self.codes)
