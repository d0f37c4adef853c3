"""Schedules made of other schedules: no signal at the end, and more noise for larger latents."""

from typing import Annotated

from ldmlab.diffusion.schedules import Schedule
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Pixels, Range


class ZeroTerminalSNR(Schedule):
    """Another schedule, stretched so that nothing of the data is left at T-1 (Lin et al. 2305.08891, Algorithm 1).

    alpha' = (alpha - alpha_{T-1}) · alpha_0 / (alpha_0 - alpha_{T-1}): the first time stays, the last has alpha' = 0. The
    target must be v, z0 or flow: an eps network's answer at T-1 says nothing about z_0 (`Objective` refuses it).
    Raises ConfigError for fewer than two times.
    """

    def __init__(self, schedule: Schedule):
        check_whole(schedule)
        if schedule.T < 2:
            raise ConfigError(f"objective.schedule.schedule.T must be at least 2 to be rescaled; got {schedule.T}.")
        alpha_T = schedule.alpha_bar_T.sqrt()
        first, last = alpha_T[0], alpha_T[-1]
        super().__init__(((alpha_T - last) * first / (first - last)) ** 2)


class Shifted(Schedule):
    """Another schedule with sigma / alpha multiplied by `factor` at each time.

    More pixels of one picture carry more evidence of it, so a larger latent needs more noise to be as uncertain: the
    factor is size / base_size (simple diffusion, 2301.11093, §2: log SNR + 2 log(base / size); SD3, 2403.03206,
    eq. 23, is the same on the straight line: τ' = s τ / (1 + (s - 1) τ)). With f from 1 to 32 the size of the latent
    of one picture changes 32 times.

    Args:
        schedule: what is shifted.
        base_size: the latent size (height) at which nothing is shifted, or
        factor: the factor itself (SD3 uses 3 at 1024 pixels); exactly one of the two.
    Given by the assembly, never an option:
        latent_size: height of this run's latent.

    Raises ConfigError when both or neither are given, and for values that are not positive.
    """

    def __init__(
        self,
        schedule: Schedule,
        latent_size: Annotated[int, Given],
        base_size: Pixels | None = None,
        factor: Annotated[float, Range(above=0, at_most=1_000)] | None = None,
    ):
        check_whole(schedule)
        if (base_size is None) == (factor is None):
            raise ConfigError(
                f"objective.schedule needs exactly one of base_size and factor; got {base_size} and {factor}. "
                "Write null for the other one."
            )
        self.factor = factor if factor is not None else latent_size / base_size if base_size else 0.0
        if not self.factor > 0:
            raise ConfigError(
                f"objective.schedule.base_size and factor must be greater than 0; got {base_size} and {factor}."
            )
        alpha_bar_T = schedule.alpha_bar_T
        super().__init__(alpha_bar_T / (alpha_bar_T + self.factor**2 * (1 - alpha_bar_T)))


def check_whole(schedule: Schedule) -> None:
    """ConfigError for a shift inside another schedule: it learns the latent's size only as the outermost."""
    if not isinstance(schedule, Schedule):
        raise ConfigError(
            "objective.schedule.schedule must be a schedule that is not shifted itself. Put Shifted outside: the two commute "
            "except for where they start."
        )
