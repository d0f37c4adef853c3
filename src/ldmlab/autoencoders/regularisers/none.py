"""No regulariser: the latent is what the encoder emits. The one for ae=identity.

Shape letters: B batch, C channels, H W space.
"""

from torch import Tensor

from ldmlab.autoencoders.regularisers.base import Posterior, Regularised, Regulariser


class NoRegulariser(Regulariser):
    """Returns its input, with a loss of 0."""

    stochastic = False

    def channels_in(self, c: int) -> int:
        return c

    def forward(self, h_BCHW: Tensor, noise_BCHW: Tensor | None) -> Regularised:
        return Regularised(h_BCHW, h_BCHW.new_zeros(()), {})

    def sample(self, h_BCHW: Tensor, noise_BCHW: Tensor | None) -> Tensor:
        return h_BCHW

    def posterior(self, h_BCHW: Tensor) -> Posterior:
        return Posterior(h_BCHW, None)

    def project(self, z_BCHW: Tensor) -> Tensor:
        return z_BCHW
