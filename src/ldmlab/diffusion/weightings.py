"""How much each noise level counts. Weights are stated for the squared error of z0 and translated to the target.

The loss at time t is weight(t) · distance of the network's answer to its target. A published weight belongs to one
target; the error of another target is that of z0 times a number (targets.py, `z0_error`), so the same weighting is the
same loss whatever the network predicts. (Of squared errors: with l1 and huber the same number multiplies the distance.)
No weighting (null) is weight 1 on the target's own error, "simple" (Ho et al. 2020, eq. 14).

Shape letters: T steps.
"""

from typing import Annotated

from torch import Tensor

from ldmlab.diffusion.targets import WORDS, Word
from ldmlab.errors import ConfigError
from ldmlab.ranges import Range


class Weighting:
    """A weight for each time, up to the target."""

    def of_z0(self, alpha_T: Tensor, sigma_T: Tensor) -> Tensor:
        """Weight of the squared error of z0 at these levels, float64."""
        raise NotImplementedError


class MinSNR(Weighting):
    """min(SNR, gamma) on the error of z0 (Hang et al. 2303.09556): / SNR on eps, / (SNR + 1) on v.

    Raises ConfigError unless gamma > 0.
    """

    def __init__(self, gamma: Annotated[float, Range(above=0, at_most=1e6)] = 5.0):
        if not gamma > 0:
            raise ConfigError(f"objective.weighting.gamma must be greater than 0; got {gamma}.")
        self.gamma = gamma

    def of_z0(self, alpha_T: Tensor, sigma_T: Tensor) -> Tensor:
        return (alpha_T / sigma_T).square().clamp(max=self.gamma)


class P2(Weighting):
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2204.00227).

    Raises ConfigError unless gamma >= 0 and k > 0.
    """

    def __init__(
        self,
        gamma: Annotated[float, Range(at_least=0, at_most=100)] = 1.0,
        k: Annotated[float, Range(above=0, at_most=1e6)] = 1.0,
    ):
        if gamma < 0 or not k > 0:
            raise ConfigError(f"objective.weighting needs gamma >= 0 and k > 0; got gamma={gamma}, k={k}.")
        self.gamma = gamma
        self.k = k

    def of_z0(self, alpha_T: Tensor, sigma_T: Tensor) -> Tensor:
        snr_T = (alpha_T / sigma_T).square()
        return snr_T / (self.k + snr_T) ** self.gamma


class EDM(Weighting):
    """(s² + sigma_data²) / (s · sigma_data)² on the error of z0, s = sigma / alpha (Karras et al. 2206.00364, Table 1).

    The same as no weighting with the EDM target of equal sigma_data, and with sigma_data = 1 as none with v.
    Raises ConfigError unless sigma_data > 0.
    """

    def __init__(self, sigma_data: Annotated[float, Range(above=0, at_most=1_000)] = 1.0):
        if not sigma_data > 0:
            raise ConfigError(f"objective.weighting.sigma_data must be greater than 0; got {sigma_data}.")
        self.sigma_data = sigma_data

    def of_z0(self, alpha_T: Tensor, sigma_T: Tensor) -> Tensor:
        return 1 / self.sigma_data**2 + (alpha_T / sigma_T) ** 2


class SimpleOf(Weighting):
    """What "simple" is for another target: `target=v` with `SimpleOf("eps")` has the loss of eps prediction.

    Separates what the network predicts from how its error is weighted.
    """

    def __init__(self, target: Word):
        self.target = WORDS[target]()

    def of_z0(self, alpha_T: Tensor, sigma_T: Tensor) -> Tensor:
        return 1 / self.target.z0_error(alpha_T, sigma_T)
