"""What the network is trained to predict, how far it is off, and what its output says about z_0 and eps.

Shape letters: B batch, C channels, H W space.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.diffusion.schedules import DeviceTable, Schedule
from ldmlab.diffusion.targets import WORDS, Prediction, Target, Word
from ldmlab.diffusion.timestep_distribution import TimestepDistribution, Uniform
from ldmlab.diffusion.weightings import Weighting
from ldmlab.errors import ConfigError
from ldmlab.randomness import Draws, stratified
from ldmlab.ranges import Positive

__all__ = ["Objective", "Prediction"]


class Objective:
    """Target, schedule, distance, weight of each noise level, and how often each is visited.

    Args:
        target: "eps" (the paper), "v", "z0", "flow", or a part such as targets.EDM.
        schedule: alpha and sigma of t.
        loss: "l2" (squared error), "l1" (absolute error; the configs of docs/paper.md#noise-schedule) or "huber" (half the
            squared error up to `delta`, delta · (absolute error - delta / 2) beyond).
        weighting: of each noise level; None is weight 1 on the target's own error ("simple", Ho et al. 2020, eq. 14; the
            paper's eq. 2 and 3).
        times: distribution of t in training; None is uniform.
        stratified: spread the times of each batch evenly over that distribution (2107.00630, App. I.1).
        delta: of loss=huber.

    Raises ConfigError for parts that cannot work together.
    """

    def __init__(
        self,
        target: Word | Target,
        schedule: Schedule,
        loss: Literal["l2", "l1", "huber"] = "l2",
        weighting: Weighting | None = None,
        times: TimestepDistribution | None = None,
        stratified: bool = False,
        delta: Positive = 1.0,
    ):
        if not delta > 0:
            raise ConfigError(f"objective.delta must be greater than 0; got {delta}.")
        self.target = target if isinstance(target, Target) else WORDS[target]()
        self.target.check(schedule)
        self.schedule = schedule
        self.distance = loss
        self.delta = delta
        self.times = times or Uniform()
        self.stratified = stratified
        self._edges = DeviceTable(self.times.edges(schedule))
        self._weight = None if weighting is None else DeviceTable(self._weights(weighting))

    def u(self, draws: Draws, position_B: Tensor, batch_size: int = 1, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1) for the times of these images, [B] on `device`; purpose "t".

        `batch_size`: images of one optimiser step, over all ranks and micro-batches; read when `stratified`.
        """
        if self.stratified:
            return stratified(draws, "t", position_B, batch_size, device)
        return draws.rand("t", position_B, (), device)

    def t(self, u_B: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) → whole times 0 … T-1 of the training distribution; never falling in u."""
        return torch.searchsorted(self._edges.on(u_B.device, torch.float32), u_B, right=True)

    def inputs(self, zt_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown for z_t and t: (image-like [B, C, H, W], time [B], whole or fractional)."""
        return self.target.inputs(zt_BCHW, t_B, *self._levels(t_B, zt_BCHW.dtype))

    def target_of(self, z0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the network should answer for z_t."""
        return self.target.of(z0_BCHW, eps_BCHW, *self._levels(t_B, z0_BCHW.dtype))

    def weight(self, t_B: Tensor, dtype: torch.dtype = torch.float64) -> Tensor | None:
        """Weight of the loss at these times, [B]; None for 1 throughout."""
        return None if self._weight is None else self._weight.on(t_B.device, dtype)[t_B]

    def loss(self, out_BCHW: Tensor, z0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Weighted distance of the network's answer to its target, mean over C, H, W; [B], float32 or wider."""
        error_BCHW = out_BCHW.to(z0_BCHW.dtype) - self.target_of(z0_BCHW, eps_BCHW, t_B)
        if self.distance == "l2":
            distance_BCHW = error_BCHW.square()
        elif self.distance == "l1":
            distance_BCHW = error_BCHW.abs()
        else:
            distance_BCHW = F.huber_loss(error_BCHW, torch.zeros_like(error_BCHW), reduction="none", delta=self.delta)
        loss_B = distance_BCHW.mean(dim=(1, 2, 3))
        weight_B = self.weight(t_B, loss_B.dtype)
        return loss_B if weight_B is None else weight_B * loss_B

    def prediction(self, out_BCHW: Tensor, zt_BCHW: Tensor, t_B: Tensor) -> Prediction:
        """Clean latent and noise from the network's answer, in the dtype of z_t; nothing is clipped."""
        return self.target.read(out_BCHW.to(zt_BCHW.dtype), zt_BCHW, *self._levels(t_B, zt_BCHW.dtype))

    def _levels(self, t_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        alpha_B, sigma_B = self.schedule.alpha(t_B, dtype), self.schedule.sigma(t_B, dtype)
        return alpha_B[:, None, None, None], sigma_B[:, None, None, None]

    def _weights(self, weighting: Weighting) -> Tensor:
        levels = self.schedule.levels()
        weight_T = weighting.of_z0(*levels) * self.target.z0_error(*levels)
        wrong_T = ~(weight_T.isfinite() & (weight_T > 0))
        if wrong_T.any():
            t = int(wrong_T.nonzero()[-1])
            raise ConfigError(
                f"objective.weighting={type(weighting).__name__} gives time {t} of {self.schedule.T} the weight {float(weight_T[t]):g} "
                "with this target and schedule: the network would never learn what sampling asks of it there. Use another weighting "
                "(null), or a schedule that keeps some signal."
            )
        return weight_T
