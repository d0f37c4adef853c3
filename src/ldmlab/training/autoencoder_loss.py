"""How a batch becomes a first stage's loss: two players, the autoencoder and (when there is one) the discriminator.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.autoencoder import Autoencoder, Reconstruction
from ldmlab.autoencoders.losses import FirstStageLoss
from ldmlab.randomness import Draws


class AutoencoderLoss:
    """Turns per batch: the autoencoder's, then the discriminator's, on reconstructions of the autoencoder just updated
    (as officially).

    `modules[player]` is what a distributed wrapper may replace, and each is called through it in its own turn only. In
    the other's turn the plain module is used, with its gradients off, so nothing of it is synchronised, accumulated or
    updated.
    """

    def __init__(self, autoencoder: Autoencoder, loss: FirstStageLoss, draws: Draws):
        self.autoencoder = autoencoder
        self.terms = loss
        self.draws = draws
        self.modules: dict[str, nn.Module] = {"autoencoder": autoencoder}
        if loss.discriminator is not None:
            self.modules["discriminator"] = loss.discriminator
        self.players = tuple(self.modules)

    def to(self, device: torch.device | str) -> "AutoencoderLoss":
        """Move everything, the perceptual network included, in place; before wrapping."""
        self.autoencoder.to(device)
        self.terms.to(device)
        return self

    def active(self, player: str, images_seen: int) -> bool:
        """Whether the player trains on this batch. Before ae.loss.disc_start the discriminator does not."""
        return player == "autoencoder" or self.terms.adversarial(images_seen)

    def loss(self, batch: dict, player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of `player` and detached scalars to log. The batch needs "image" and "position"."""
        return (
            self._autoencoder_turn(batch, images_seen) if player == "autoencoder" else self._discriminator_turn(batch)
        )

    def on_step_end(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What the regulariser does once a step, over all micro-batches and ranks."""
        return self.autoencoder.regulariser.on_step_end(gather)

    def _autoencoder_turn(self, batch: dict, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        recon = Reconstruction(*self.modules["autoencoder"](batch["image"], self._noise(batch, "autoencoder")))
        discriminator = self.terms.discriminator
        with without_gradients(discriminator):
            return self.terms.autoencoder_loss(
                batch["image"], recon, self.autoencoder.last_layer, images_seen, discriminate=discriminator
            )

    def _discriminator_turn(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            recon = self.autoencoder(batch["image"], self._noise(batch, "discriminator"))
        return self.terms.discriminator_loss(batch["image"], recon.image_BCHW, self.modules["discriminator"])

    def _noise(self, batch: dict, turn: str) -> Tensor | None:
        """Posterior noise; a fresh one each turn."""
        if not self.autoencoder.stochastic:
            return None
        image_BCHW = batch["image"]
        shape = self.autoencoder.latent_shape(image_BCHW.shape[-1])
        return self.draws.randn(f"posterior/{turn}", batch["position"], shape, image_BCHW.device)


@contextmanager
def without_gradients(module: nn.Module | None) -> Iterator[None]:
    """Within, gradients pass through `module` to its input and none is kept for its parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad] if module is not None else []
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
