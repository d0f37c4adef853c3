"""How a batch becomes the loss of the denoiser (the paper's eq. 3).

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.errors import ConfigError
from ldmlab.randomness import Draws
from ldmlab.training.loop import TrainingLoss

BINS = 4  # of noise levels, for the log


class FrozenAutoencoder(Protocol):
    """What the loss needs of the autoencoder (an nn.Module)."""

    @property
    def c(self) -> int: ...
    def moments(self, image_BCHW: Tensor) -> Tensor: ...
    def sample(self, moments_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor: ...
    def eval(self) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...


class DiffusionLoss(TrainingLoss):
    """Trains `denoiser` (network and conditioner together) on the latents of a frozen autoencoder.

    Args:
        denoiser: the module that learns.
        autoencoder: frozen here, and put in eval mode.
        objective: target, schedule, distance, weight and distribution of t.
        draws: random numbers by position; purposes "posterior", "t", "eps" and "drop".
        drop: probability, per example, of training without its condition (`cond.drop`); of each of several conditions by
            itself, a list (`cond.apart`).
        batch_size: images of one optimiser step, over which a stratified objective spreads its times.

    Raises ConfigError for a probability outside [0, 1].
    """

    players: tuple[str, ...] = ("denoiser",)

    def __init__(
        self,
        denoiser: Denoiser,
        autoencoder: FrozenAutoencoder,
        objective: Objective,
        draws: Draws,
        drop: float | Sequence[float] = 0.0,
        batch_size: int = 1,
    ):
        chances = [drop] if isinstance(drop, float | int) else list(drop)
        if not all(0 <= chance <= 1 for chance in chances):
            raise ConfigError(f"cond.drop must be from 0 to 1; got {drop}.")
        autoencoder.eval()
        autoencoder.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"denoiser": denoiser}
        self.autoencoder = autoencoder
        self.objective = objective
        self.draws = draws
        self.chances, self.apart = chances, not isinstance(drop, float | int)
        self.batch_size = batch_size

    def loss(self, batch: dict[str, Any], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the batch, and logs (detached): "loss", and "loss_t0" … "loss_t3" for the quarters of the
        training distribution of t, the least noisy first: quarters of the schedule where t is uniform.

        The batch holds cached "moments" or an "image". A quarter's number is 4 · (sum of its losses) / B, so that its
        mean over steps, micro-batches and ranks is the mean loss of that quarter even where a batch has no example of
        it. Losses are weighted, as they are trained on.
        """
        position_B = batch["position"]
        z0_BCHW = self.latents(batch)
        device = z0_BCHW.device
        u_B = self.objective.u(self.draws, position_B, self.batch_size, device)
        t_B = self.objective.t(u_B)
        eps_BCHW = self.draws.randn("eps", position_B, z0_BCHW.shape[1:], device)
        drop_B = self.dropped(position_B, device)
        zt_BCHW = self.objective.schedule.zt(z0_BCHW, eps_BCHW, t_B)
        shown_BCHW, time_B = self.objective.inputs(zt_BCHW, t_B)
        out_BCHW = self.modules[player](shown_BCHW, time_B, batch, drop_B)
        loss_B = self.objective.loss(out_BCHW, z0_BCHW, eps_BCHW, t_B)
        loss = loss_B.mean()
        return loss, {"loss": loss.detach(), **by_time("loss", loss_B.detach(), u_B)}

    def dropped(self, position_B: Tensor, device: torch.device) -> Tensor | None:
        """Which examples lose their condition, bool [B], or apart [B, P]; None where none ever does."""
        if not any(chance > 0 for chance in self.chances):
            return None
        if not self.apart:
            return self.draws.rand("drop", position_B, (), device) < self.chances[0]
        u_BP = self.draws.rand("drop", position_B, (len(self.chances),), device)
        return torch.stack([u_B < chance for u_B, chance in zip(u_BP.unbind(1), self.chances, strict=True)], dim=1)

    def latents(self, batch: dict[str, Any]) -> Tensor:
        """Standardised latents [B, c, H/f, W/f], float32: one sample of each posterior."""
        return latents_of(batch, self.autoencoder, self.draws)


@torch.no_grad()
def latents_of(batch: dict[str, Any], autoencoder: FrozenAutoencoder, draws: Draws) -> Tensor:
    """Standardised latents [B, c, H/f, W/f], float32, of cached "moments" or an "image": one sample of each posterior."""
    moments_BCHW = batch["moments"] if "moments" in batch else autoencoder.moments(batch["image"])
    shape = (autoencoder.c, *moments_BCHW.shape[2:])
    noise_BCHW = draws.randn("posterior", batch["position"], shape, moments_BCHW.device)
    return autoencoder.sample(moments_BCHW.float(), noise_BCHW)


def by_time(name: str, value_B: Tensor, u_B: Tensor) -> dict[str, Tensor]:
    """The mean of `value_B` in each quarter of the distribution of t, as BINS · (sum of the quarter) / B, under `name`_t0 …"""
    bin_B = (u_B * BINS).long()  # t never falls in u: quarters of u are quarters of t
    return {f"{name}_t{i}": BINS * (value_B * (bin_B == i)).mean() for i in range(BINS)}
