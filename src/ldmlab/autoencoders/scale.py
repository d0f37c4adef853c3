"""Measuring the scale and shift that standardise a latent.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldmlab.autoencoders.regularisers.base import Posterior
from ldmlab.errors import TrainingError

Mode = Literal["global", "per_channel", "first_batch_std", "none"]


class Scale(NamedTuple):
    """z = (raw − shift) · scale; both float32 of shape [c, 1, 1] ([1, 1, 1] when nothing was measured)."""

    scale_C11: Tensor
    shift_C11: Tensor


class LatentStatistics:
    """Mean and standard deviation of *sampled* latents per channel, streaming, float64, without sampling.

    The variance of a sample is the variance of the means plus the mean of the posterior variances (law of total
    variance). `sums_3C` (count, sum, sum of squares) adds up across ranks and batches. Standard deviations are of the
    population (divisor n).
    """

    def __init__(self, c: int):
        self.sums_3C = torch.zeros(3, c, dtype=torch.float64)

    def update(self, posterior: Posterior) -> None:
        """Take in one batch of any size."""
        mean_CM = posterior.mean_BCHW.detach().cpu().double().transpose(0, 1).flatten(1)
        square_C = mean_CM.square().sum(1)
        if posterior.variance_BCHW is not None:
            square_C = square_C + posterior.variance_BCHW.detach().cpu().double().transpose(0, 1).flatten(1).sum(1)
        count_C = torch.full_like(square_C, mean_CM.shape[1])
        self.sums_3C = self.sums_3C + torch.stack([count_C, mean_CM.sum(1), square_C])

    @property
    def mean_C(self) -> Tensor:
        """Per channel, float64."""
        return self.sums_3C[1] / self.sums_3C[0]

    @property
    def std_C(self) -> Tensor:
        """Per channel, float64."""
        return (self.sums_3C[2] / self.sums_3C[0] - self.mean_C.square()).clamp_min(0).sqrt()

    @property
    def mean(self) -> float:
        """Over all elements."""
        return float(self.mean_C.mean())

    @property
    def std(self) -> float:
        """Over all elements, around the one mean of all of them (as `z.flatten().std()` in the official code)."""
        square = self.sums_3C[2].sum() / self.sums_3C[0].sum()
        return float((square - self.mean**2).clamp_min(0).sqrt())

    def scale(self, mode: Literal["global", "per_channel"]) -> Scale:
        """Raises TrainingError when a spread is zero or not finite: such a latent holds no information."""
        c = self.sums_3C.shape[1]
        std_C = self.std_C if mode == "per_channel" else torch.full((c,), self.std, dtype=torch.float64)
        shift_C = self.mean_C if mode == "per_channel" else torch.zeros(c, dtype=torch.float64)
        if not (std_C.isfinite() & (std_C > 1e-12)).all():
            raise TrainingError(
                f"the latent's standard deviation is {std_C.tolist()} per channel: the autoencoder has failed. "
                "Look at its reconstructions; lower ae.regulariser.weight or ae.fit.lr."
            )
        return Scale((1 / std_C).float().view(c, 1, 1), shift_C.float().view(c, 1, 1))


def measure_scale(posteriors: Iterable[Posterior], mode: Mode) -> Scale:
    """Scale and shift from batches of `Autoencoder.posterior(moments)`.

    global           1 / one standard deviation over all elements of all batches, shift 0
    per_channel      1 / standard deviation and mean of each channel
    first_batch_std  the paper's: as `global`, from the first batch alone (official ddpm.py draws one sample for it;
                     this takes the expectation over draws, so it needs no randomness)
    none             scale 1, shift 0 (the paper's VQ models, App. D.1); no batch is looked at

    Raises TrainingError for a collapsed or diverged latent, ValueError when there is no batch.
    """
    if mode == "none":
        return Scale(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    statistics: LatentStatistics | None = None
    for posterior in posteriors:
        statistics = statistics or LatentStatistics(posterior.mean_BCHW.shape[1])
        statistics.update(posterior)
        if mode == "first_batch_std":
            break
    if statistics is None:
        raise ValueError("no batch to measure the latent's scale on")
    return statistics.scale("per_channel" if mode == "per_channel" else "global")
