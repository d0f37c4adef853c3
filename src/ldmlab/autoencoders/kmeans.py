"""k-means of latent vectors: where a codebook starts, and what vector quantisation of a linear latent can do.

Lloyd's rounds (1982) from the start of k-means++ (Arthur and Vassilvitskii, 2007).

Shape letters: C channels, M vectors, K codes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.randomness import seed_of

VECTORS_PER_CODE = 64  # a codebook's start looks at no more than these, spread evenly
ROUNDS = 25
BLOCK_ELEMENTS = 1 << 22  # distances held at once in the search: 16 MiB of float32


def vectors(latents: Iterable[Tensor]) -> Tensor:
    """All positions of batches [B, C, H, W] as rows, [M, C]."""
    return torch.cat([z_BCHW.permute(0, 2, 3, 1).flatten(0, 2) for z_BCHW in latents])


def thinned(x_MC: Tensor, most: int) -> Tensor:
    """At most `most` rows, drawn without repetition by a fixed seed, in the order of the rows."""
    if len(x_MC) <= most:
        return x_MC
    generator = torch.Generator().manual_seed(seed_of("k-means", "vectors"))
    chosen = torch.randperm(len(x_MC), generator=generator)[:most].sort().values
    return x_MC[chosen.to(x_MC.device)]


@torch.no_grad()
def kmeans(x_MC: Tensor, codes: int, rounds: int = ROUNDS) -> Tensor:
    """Codes [K, C] of least mean squared distance that Lloyd's rounds find from the start of k-means++.

    A code that no row is nearest to is put beside the row that is worst served. The same rows give the same codes.
    Raises ConfigError when there are fewer rows than codes.
    """
    if len(x_MC) < codes:
        raise ConfigError(
            f"ae.regulariser.codes={codes}: the training images have {len(x_MC)} latent vectors only. "
            "Take fewer ae.regulariser.codes, or ae.regulariser.start=uniform."
        )
    code_KC = _spread(x_MC, codes)
    for _ in range(rounds):
        index_M = nearest(x_MC, code_KC)
        count_K = torch.bincount(index_M, minlength=codes)
        sum_KC = torch.zeros_like(code_KC).index_add_(0, index_M, x_MC)
        empty = (count_K == 0).nonzero().flatten()
        worst_M = (x_MC - code_KC[index_M]).square().sum(1)
        code_KC = sum_KC / count_K.clamp_min(1).unsqueeze(1)
        if len(empty):
            code_KC[empty] = x_MC[worst_M.topk(len(empty)).indices]
    return code_KC


def _spread(x_MC: Tensor, codes: int) -> Tensor:
    """k-means++: each next code is a row drawn in proportion to its squared distance from the codes before it."""
    generator = torch.Generator().manual_seed(seed_of("k-means", "start"))
    draw_K = torch.rand(codes, generator=generator, dtype=torch.float64)
    code_KC = x_MC.new_empty(codes, x_MC.shape[1])
    code_KC[0] = x_MC[int(draw_K[0] * len(x_MC))]
    distance_M = (x_MC - code_KC[0]).square().sum(1)
    for k in range(1, codes):
        share_M = distance_M.double().cumsum(0)
        place = torch.searchsorted(share_M, draw_K[k].to(share_M) * share_M[-1], right=True)
        code_KC[k] = x_MC[int(place.clamp_max(len(x_MC) - 1))]
        distance_M = torch.minimum(distance_M, (x_MC - code_KC[k]).square().sum(1))
    return code_KC


def nearest(h_MC: Tensor, code_KC: Tensor) -> Tensor:
    """Index of the nearest code of each row, int64 [M]. Rows go in blocks, so memory depends on K alone, not on M."""
    # ‖h − e‖² = ‖h‖² + (‖e‖² − 2 h·e); the first term does not move the minimum
    norm_K = code_KC.square().sum(1)
    code_CK = code_KC.t()
    rows = max(1, BLOCK_ELEMENTS // len(code_KC))
    blocks = [
        torch.addmm(norm_K, block_RC, code_CK, alpha=-2).argmin(1) for block_RC in h_MC.to(code_KC.dtype).split(rows)
    ]
    return torch.cat(blocks)
