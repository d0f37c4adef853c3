"""Which of the T training times a sampler visits."""

from typing import Literal

from ldmlab.errors import ConfigError

Grid = Literal["trailing", "official"]


def times(T: int, steps: int, grid: Grid) -> list[int]:
    """Times from the noisiest down, `steps` + 1 of them: where the network is evaluated, then where the last step arrives.

    "trailing" starts at T-1 and arrives at -1, the data itself: round(T - i T / steps) - 1 (Lin et al. 2023, Table 2).
    Any number of steps works. "official" is the released code's rule, range(0, T, T // steps) + 1, which starts below
    T-1 and arrives at time 0, whose noise stays in the image (docs/paper.md#sampling-times). It is refused unless it gives
    exactly the steps asked for: the released code silently runs 500 for 400, and fails for 300.

    Raises ConfigError naming `sampler.steps`.
    """
    if not 1 <= steps <= T:
        raise ConfigError(
            f"sampler.steps must be from 1 to {T}, the steps of the schedule (objective.schedule.T); got {steps}."
        )
    if grid == "trailing":
        return [round(T - i * T / steps) - 1 for i in range(steps)] + [-1]
    if T % steps or steps == T:
        exact = [s for s in range(1, T) if T % s == 0]
        below = max((s for s in exact if s < steps), default=None)
        above = min((s for s in exact if s > steps), default=None)
        near = " or ".join(str(s) for s in (below, above) if s is not None)
        raise ConfigError(
            f"sampler.steps={steps} is not a number of steps that sampler.grid=official can take: its rule, "
            f"range(0, {T}, {T} // steps) + 1, gives another number or leaves the schedule. Nearest exact: {near}; "
            "sampler.grid=trailing takes any."
        )
    return [t + 1 for t in reversed(range(0, T, T // steps))] + [0]
