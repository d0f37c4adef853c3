"""A Gaussian posterior, pulled lightly towards N(0, I) (paper Sec. 3.1 and App. G; official distributions.py).

Shape letters: B batch, C channels, H W space.
"""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.regularisers.base import Posterior, Regularised, Regulariser, widen
from ldmlab.errors import ConfigError
from ldmlab.ranges import Range, Weight

LOGVAR_RANGE = (-30.0, 20.0)  # official DiagonalGaussianDistribution


class KL(Regulariser):
    """KL(N(mean, var) ‖ N(0, I)), summed over all latent elements, averaged over the batch, times `weight`.

    The encoder emits 2c channels: mean and log-variance (clamped to [-30, 20]). `weight` 1e-6 is the paper's and
    belongs to a reconstruction term that is summed over elements too (ae.loss.reduction=sum).

    initial_logvar   the log-variance an untrained encoder emits. Officially about 0: noise as large as any latent, which
                     the first thousands of steps go into overcoming. Short trainings start below, say at -6
    """

    stochastic = True

    def __init__(self, weight: Weight = 1e-6, initial_logvar: Annotated[float, Range(*LOGVAR_RANGE)] = 0.0):
        super().__init__()
        if weight < 0:
            raise ConfigError(f"ae.regulariser.weight={weight} must not be negative.")
        if not LOGVAR_RANGE[0] <= initial_logvar <= LOGVAR_RANGE[1]:
            raise ConfigError(f"ae.regulariser.initial_logvar={initial_logvar} must lie in {list(LOGVAR_RANGE)}.")
        self.weight, self.initial_logvar = weight, initial_logvar

    def channels_in(self, c: int) -> int:
        """2c: mean and log-variance."""
        return 2 * c

    def initialise(self, moments_layer: nn.Conv2d) -> None:
        """Add `initial_logvar` to the log-variances' biases."""
        assert moments_layer.bias is not None
        with torch.no_grad():
            moments_layer.bias[len(moments_layer.bias) // 2 :] += self.initial_logvar

    def forward(self, h_BCHW: Tensor, noise_BCHW: Tensor | None) -> Regularised:
        """Posterior sample, weighted KL, and its size in nats per image (`kl`) and bits per element (`kl_bits`)."""
        mean_BCHW, logvar_BCHW = self._split(h_BCHW)
        # KL(N(m, s²) ‖ N(0, 1)) = (m² + s² − 1 − log s²) / 2 per element
        kl_BCHW = 0.5 * (mean_BCHW.square() + logvar_BCHW.exp() - 1 - logvar_BCHW)
        kl = kl_BCHW.flatten(1).sum(1).mean()
        stats = {"kl": kl.detach(), "kl_bits": kl.detach() / (math.log(2) * kl_BCHW[0].numel())}
        return Regularised(self.sample(h_BCHW, noise_BCHW), self.weight * kl, stats)

    def sample(self, h_BCHW: Tensor, noise_BCHW: Tensor | None) -> Tensor:
        """mean + exp(logvar / 2) · noise, float32; the mean when the noise is None."""
        mean_BCHW, logvar_BCHW = self._split(h_BCHW)
        if noise_BCHW is None:
            return mean_BCHW
        return mean_BCHW + (logvar_BCHW / 2).exp() * noise_BCHW

    def posterior(self, h_BCHW: Tensor) -> Posterior:
        """Mean and variance of the latent, per element."""
        mean_BCHW, logvar_BCHW = self._split(h_BCHW)
        return Posterior(mean_BCHW, logvar_BCHW.exp())

    def project(self, z_BCHW: Tensor) -> Tensor:
        """The decoder reads the latent as it is."""
        return z_BCHW

    def _split(self, h_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean_BCHW, logvar_BCHW = widen(h_BCHW).chunk(2, dim=1)
        return mean_BCHW, torch.clamp(logvar_BCHW, *LOGVAR_RANGE)
