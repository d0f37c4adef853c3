"""How a batch becomes the loss of a classifier of noisy latents (guidance=classifier; LDM-8-G), and how well it names them.

Shape letters: B batch, C channels, H W space, K classes.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.diffusion.objectives import Objective
from ldmlab.networks.noisy_classifier import NoisyClassifier
from ldmlab.randomness import Draws
from ldmlab.training.diffusion_loss import BINS, FrozenAutoencoder, by_time, latents_of
from ldmlab.training.loop import TrainingLoss


class NoisyClassifierLoss(TrainingLoss):
    """Trains `classifier` to name the class of z_t, at the times and noise levels at which the denoiser is trained.

    Args:
        classifier: the module that learns.
        autoencoder: frozen here, and put in eval mode.
        objective: its schedule and its distribution of t are read, nothing else.
        draws: random numbers by position; purposes "posterior", "t" and "eps".
        batch_size: images of one optimiser step, over which a stratified objective spreads its times.
    """

    players: tuple[str, ...] = ("classifier",)

    def __init__(
        self,
        classifier: NoisyClassifier,
        autoencoder: FrozenAutoencoder,
        objective: Objective,
        draws: Draws,
        batch_size: int = 1,
    ):
        autoencoder.eval()
        autoencoder.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"classifier": classifier}
        self.autoencoder, self.objective, self.draws, self.batch_size = autoencoder, objective, draws, batch_size

    def loss(self, batch: dict[str, Any], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over the batch, and logs (detached): "loss", "accuracy", and "accuracy_t0" … "accuracy_t3" for the
        quarters of the training distribution of t, the least noisy first (see `diffusion_loss.by_time`)."""
        z0_BCHW = latents_of(batch, self.autoencoder, self.draws)
        u_B = self.objective.u(self.draws, batch["position"], self.batch_size, z0_BCHW.device)
        logits_BK, label_B = self.logits(z0_BCHW, u_B, batch, player)
        loss = F.cross_entropy(logits_BK, label_B)
        right_B = (logits_BK.argmax(dim=1) == label_B).float()
        logs = {"loss": loss.detach(), "accuracy": right_B.mean(), **by_time("accuracy", right_B, u_B)}
        return loss, logs

    def logits(self, z0_BCHW: Tensor, u_B: Tensor, batch: dict[str, Any], player: str) -> tuple[Tensor, Tensor]:
        """Logits [B, K], float32, for z_0 with the noise of the places `u_B` in the distribution of t; and the labels."""
        t_B = self.objective.t(u_B)
        eps_BCHW = self.draws.randn("eps", batch["position"], z0_BCHW.shape[1:], z0_BCHW.device)
        logits_BK = self.modules[player](self.objective.schedule.zt(z0_BCHW, eps_BCHW, t_B), t_B)
        return logits_BK.float(), batch["label"].to(z0_BCHW.device)

    @torch.no_grad()
    def accuracy(self, batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Of the images of these batches, each once in every quarter of the distribution of t, at a time drawn there.

        "accuracy" is the mean of the quarters' "accuracy_t0" … "accuracy_t3"; "images" is their number; "chance" the share
        of the most frequent class, which is what naming it every time would give.
        """
        right, count, seen = [0.0] * BINS, 0, []
        for batch in batches:
            z0_BCHW = latents_of(batch, self.autoencoder, self.draws)
            within_B = self.draws.rand("t", batch["position"], (), z0_BCHW.device)
            for i in range(BINS):
                logits_BK, label_B = self.logits(z0_BCHW, (i + within_B) / BINS, batch, "classifier")
                right[i] += float((logits_BK.argmax(dim=1) == label_B).sum())
            count += len(label_B)
            seen.append(label_B.cpu())
        found = {f"accuracy_t{i}": n / count for i, n in enumerate(right)}
        chance = float(torch.cat(seen).bincount().max()) / count
        return {"accuracy": sum(right) / count / BINS, **found, "chance": chance, "images": count}
