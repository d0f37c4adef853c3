"""Where sampling starts when it does not start from noise, and what it is held to on the way.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.samplers.base import Callback, Level, Schedule

Project = Callable[[Tensor, int, Level], Tensor]
"""(z [B, C, H, W] after a step, the time where the step arrived, its signal and noise) → the z to go on with."""


@dataclass(frozen=True)
class Start:
    """Images to start from, as latents: SDEdit (Meng et al. 2022), "image to image".

    z0_BCHW: standardised latents. strength: in (0, 1], how much of the way there is to noise; sampling begins at the visited
    time nearest to strength · T - 1 (the noisier of two), from alpha z_0 + sigma eps, and makes the steps that are left.

    Strength 1 begins at the first visited time with every step. It is sampling from noise, bit for bit, where the schedule
    leaves no signal there (alpha 0: zero terminal SNR); otherwise z_0 is seen through that alpha, 0.07 for the paper's
    schedule.

    Raises ConfigError for a strength outside (0, 1].
    """

    z0_BCHW: Tensor
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ConfigError(
                f"strength={self.strength} must be above 0 (nothing is changed there) and at most 1 (from noise)."
            )

    def times(self, times: list[int], T: int) -> list[int]:
        """The visited times that are left, at least one step."""
        wanted = self.strength * T - 1
        nearest = min(range(len(times) - 1), key=lambda i: abs(times[i] - wanted))
        return times[nearest:]

    def noised(self, eps_BCHW: Tensor, level: Level) -> Tensor:
        """alpha z_0 + sigma eps."""
        return level.alpha * self.z0_BCHW + level.sigma * eps_BCHW


@dataclass(frozen=True)
class Known:
    """A projection: known latent pixels are kept, at each time with the noise of that time (RePaint's conditioning, Lugmayr
    et al. 2022, eq. 8, with one fixed noise per image). At the data they are z_0 exactly.

    z0_BCHW: the known latents. mask_B1HW: bool, true where they are known. eps_BCHW: standard normal noise.
    """

    z0_BCHW: Tensor
    mask_B1HW: Tensor
    eps_BCHW: Tensor

    def __call__(self, z_BCHW: Tensor, t: int, level: Level) -> Tensor:
        known_BCHW = level.alpha * self.z0_BCHW + level.sigma * self.eps_BCHW
        return torch.where(self.mask_B1HW, known_BCHW, z_BCHW)


def projecting(project: Project, times: list[int], schedule: Schedule, callback: Callback | None) -> Callback:
    """A callback that projects z after each step; the one given sees the projected z."""

    def after(done: int, steps: int, z_BCHW: Tensor) -> Tensor:
        projected_BCHW = project(z_BCHW, times[done], schedule.at(times[done]))
        changed_BCHW = None if callback is None else callback(done, steps, projected_BCHW)
        return projected_BCHW if changed_BCHW is None else changed_BCHW

    return after
