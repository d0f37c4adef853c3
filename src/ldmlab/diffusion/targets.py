"""What a network can be trained to predict, and how z_0 and eps follow from its prediction.

Every target is a · z0 + b · eps with a, b of (alpha, sigma). With z_t = alpha z0 + sigma eps that gives z0 and eps back
unless the two equations are the same, det = alpha b - sigma a = 0. An error e of the answer is an error
-(sigma / det) e of z0.

All letters are those of schedules.py: alpha² + sigma² = 1. A network that is trained in another scaling of z_t
(rectified flow, EDM) gets it from `inputs`.

Shape letters: B batch, C channels, H W space, T steps.
"""

from typing import Annotated, Literal, NamedTuple

from torch import Tensor

from ldmlab.diffusion.schedules import Schedule
from ldmlab.errors import ConfigError
from ldmlab.ranges import Range

Word = Literal["eps", "v", "z0", "flow"]


class Prediction(NamedTuple):
    """What a denoiser predicts from z_t = alpha z0 + sigma eps: the clean latent and the noise, both [B, C, H, W]."""

    z0: Tensor
    eps: Tensor


class Target:
    """One thing to predict. `alpha` and `sigma` come in any shape that broadcasts: [B, 1, 1, 1], or [T] for tables."""

    def of(self, z0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The training target."""
        raise NotImplementedError

    def read(self, out: Tensor, zt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """Clean latent and noise from an answer; nothing is clipped."""
        raise NotImplementedError

    def z0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Squared error of z0 per squared error of the answer: sigma² / det²."""
        raise NotImplementedError

    def inputs(self, zt: Tensor, t_B: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown for z_t and t: (image-like, time [B])."""
        return zt, t_B

    def check(self, schedule: Schedule) -> None:
        """Raise ConfigError when this target cannot work with the schedule."""


class Eps(Target):
    """The noise (Ho et al. 2020; the paper's eq. 2 and 3)."""

    def of(self, z0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps

    def read(self, out: Tensor, zt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        return Prediction((zt - sigma * out) / alpha, out)

    def z0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / alpha) ** 2

    def check(self, schedule: Schedule) -> None:
        if schedule.ends_without_signal:
            raise ConfigError(
                "objective.target=eps cannot work with a schedule that ends without signal (zero terminal SNR, flow): at "
                "T-1 z_t is eps and says nothing about z0. Use objective.target=v, z0 or flow, or another schedule."
            )


class Z0(Target):
    """The clean latent."""

    def of(self, z0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return z0

    def read(self, out: Tensor, zt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        return Prediction(out, (zt - alpha * out) / sigma)

    def z0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma * 0 + 1


class V(Target):
    """v = alpha eps - sigma z0 (Salimans & Ho 2022, App. D)."""

    def of(self, z0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * eps - sigma * z0

    def read(self, out: Tensor, zt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        return Prediction(alpha * zt - sigma * out, sigma * zt + alpha * out)

    def z0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma**2


class Velocity(Target):
    """eps - z0, the velocity of the straight line (1 - τ) z0 + τ eps with τ = sigma / (alpha + sigma) (2209.03003, eq. 1).

    The network is shown the point of that line, z_t / (alpha + sigma), and the whole time. (The rectified-flow paper runs
    from noise to data and has the opposite sign; this is SD3's, 2403.03206.)
    """

    def of(self, z0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps - z0

    def read(self, out: Tensor, zt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        return Prediction((zt - sigma * out) / (alpha + sigma), (zt + alpha * out) / (alpha + sigma))

    def z0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / (alpha + sigma)) ** 2

    def inputs(self, zt: Tensor, t_B: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return zt / (alpha + sigma), t_B


class EDM(Target):
    """The F of D(x; s) = c_skip x + c_out F(c_in x; c_noise) for x = z0 + s eps (Karras et al. 2206.00364, eq. 7, Table 1).

    Here x = z_t / alpha and s = sigma / alpha. With loss l2 and no weighting this is the paper's: its weight 1 / c_out² on
    the error of D is weight 1 on the error of F. With sigma_data = 1, F is -v.

    Args:
        sigma_data: standard deviation of the data. 1 for latents that are standardised (ae.latent_scale); the paper's 0.5
            is for images in [-1, 1].

    Raises ConfigError unless sigma_data > 0.
    """

    def __init__(self, sigma_data: Annotated[float, Range(above=0, at_most=1_000)] = 1.0):
        if not sigma_data > 0:
            raise ConfigError(f"objective.target.sigma_data must be greater than 0; got {sigma_data}.")
        self.sigma_data = sigma_data

    def c_skip(self, s: Tensor) -> Tensor:
        return self.sigma_data**2 / (s**2 + self.sigma_data**2)

    def c_out(self, s: Tensor) -> Tensor:
        return s * self.sigma_data / (s**2 + self.sigma_data**2).sqrt()

    def c_in(self, s: Tensor) -> Tensor:
        return 1 / (s**2 + self.sigma_data**2).sqrt()

    def c_noise(self, s: Tensor) -> Tensor:
        return s.log() / 4

    def of(self, z0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        # (z0 - c_skip x) / c_out, written so that nothing cancels where s is small: c_skip x is nearly z0 there
        s = sigma / alpha
        return (s / self.sigma_data * z0 - self.sigma_data * eps) / (s**2 + self.sigma_data**2).sqrt()

    def read(self, out: Tensor, zt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        s, x = sigma / alpha, zt / alpha
        # eps = (x - D) / s with 1 - c_skip = s² / (s² + sigma_data²), for the same reason
        eps = s / (s**2 + self.sigma_data**2) * x - self.c_out(s) / s * out
        return Prediction(self.c_skip(s) * x + self.c_out(s) * out, eps)

    def z0_error(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.c_out(sigma / alpha) ** 2

    def inputs(self, zt: Tensor, t_B: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        s = sigma / alpha
        return self.c_in(s) * zt / alpha, self.c_noise(s).reshape(t_B.shape)

    def check(self, schedule: Schedule) -> None:
        if schedule.ends_without_signal:
            raise ConfigError(
                "objective.target=edm cannot work with a schedule that ends without signal (zero terminal SNR, flow): "
                "its sigma is infinite there. Use objective/schedule=karras, or objective.target=v."
            )


WORDS: dict[str, type[Target]] = {"eps": Eps, "v": V, "z0": Z0, "flow": Velocity}
"""Targets without options of their own; one with options is a part with a `_target_`."""
