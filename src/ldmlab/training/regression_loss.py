"""How a batch becomes the loss of a regression network: the mean of the latent under a condition.

Shape letters: B batch, C channels, H W space.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.randomness import Draws
from ldmlab.training.diffusion_loss import FrozenAutoencoder, latents_of
from ldmlab.training.loop import TrainingLoss


class RegressionLoss(TrainingLoss):
    """Trains a denoiser's network and conditioner to predict z_0 itself: the squared error of its answer at time 0 for a latent
    of zeros under the condition (the regression of SR3, Saharia et al. 2104.07636, which the paper's Table 5 lists).
    """

    players: tuple[str, ...] = ("regression",)

    def __init__(self, denoiser: Denoiser, autoencoder: FrozenAutoencoder, draws: Draws):
        autoencoder.eval()
        autoencoder.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"regression": denoiser}
        self.autoencoder, self.draws = autoencoder, draws

    def loss(self, batch: dict[str, Any], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over the latent, and it as a log."""
        z0_BCHW = latents_of(batch, self.autoencoder, self.draws)
        zeros_BCHW, t_B = torch.zeros_like(z0_BCHW), torch.zeros(len(z0_BCHW), dtype=torch.long, device=z0_BCHW.device)
        loss = F.mse_loss(self.modules[player](zeros_BCHW, t_B, batch), z0_BCHW)
        return loss, {"loss": loss.detach()}


@torch.no_grad()
def predicted(denoiser: Denoiser, batch: dict[str, Any], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """The trained network's latents [B, c, h, w] for the conditions of a batch."""
    cond = denoiser.condition(batch)
    n = next(len(part) for part in (cond.tokens_BLD, cond.concat_BCHW, cond.vector_BD) if part is not None)
    zeros_BCHW, t_B = torch.zeros(n, *shape, device=device), torch.zeros(n, dtype=torch.long, device=device)
    found: Tensor = denoiser.network(zeros_BCHW, t_B, cond)
    return found
