"""What every regulariser offers and returns, and the precision they all compute in.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Regularised(NamedTuple):
    """Result of a regulariser in training."""

    z_BCHW: Tensor  # what the decoder reads
    loss: Tensor  # scalar, already weighted, to be added to the total
    stats: dict[str, Tensor]  # detached scalars to log


class Posterior(NamedTuple):
    """Mean and variance of the latent given the image; a deterministic latent has variance None."""

    mean_BCHW: Tensor
    variance_BCHW: Tensor | None


class Regulariser(nn.Module):
    """How the encoder's output becomes a latent, and what that costs. One file each; the yaml's `_target_` names it."""

    stochastic: bool  # whether `sample` and `forward` make use of noise
    quantises: bool = False  # whether the decoder reads something else than the moments' mean
    starts: bool = False  # whether `start` takes values from the encoder's first output

    def channels_in(self, c: int) -> int:
        """Channels wanted from the encoder for a latent of c channels."""
        raise NotImplementedError

    def initialise(self, moments_layer: nn.Conv2d) -> None:
        """Adjust the fresh layer that emits the moments; nothing by default."""

    def start(self, moments: Iterable[Tensor]) -> None:
        """Closed-form values (a codebook) from what the fresh encoder emits for training images; nothing by default."""

    def forward(self, h_BCHW: Tensor, noise_BCHW: Tensor | None) -> Regularised:
        """The training path. Noise is standard normal of the latent's shape; None takes the mean."""
        raise NotImplementedError

    def sample(self, h_BCHW: Tensor, noise_BCHW: Tensor | None) -> Tensor:
        """The raw latent, as diffusion sees it before standardisation."""
        raise NotImplementedError

    def posterior(self, h_BCHW: Tensor) -> Posterior:
        """Mean and variance of the raw latent."""
        raise NotImplementedError

    def project(self, z_BCHW: Tensor) -> Tensor:
        """What the decoder does first with a raw latent."""
        raise NotImplementedError

    def counts(self, h_BCHW: Tensor) -> Tensor | None:
        """How often each code is used, int64 [K]; None without a codebook."""
        return None

    def on_step_end(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Called once at the end of each training step, on all ranks, with what stacks a tensor over them: [...] → [ranks, ...].

        For what must not depend on how the step was cut up. Returns scalars to log; nothing to do by default.
        """
        return {}


def widen(x: Tensor) -> Tensor:
    """At least float32: a KL of large maps and a nearest-code search must not be done in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def counted(index: Tensor, codes: int) -> Tensor:
    """How often each code occurs, int64 [K]; unlike `bincount`, without waiting for a GPU to look for the largest."""
    flat_M = index.flatten()
    return flat_M.new_zeros(codes).scatter_add_(0, flat_M, torch.ones_like(flat_M))


def usage(count_K: Tensor) -> dict[str, Tensor]:
    """Share of the K codes in use and perplexity exp(−Σ p log p), from how often each was used."""
    p_K = count_K.float() / count_K.sum()
    entropy = -torch.special.xlogy(p_K, p_K).sum()
    return {"codebook_usage": (count_K > 0).float().mean(), "perplexity": entropy.exp()}
