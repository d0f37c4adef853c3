"""How a batch becomes the loss of the shapes classifier: cross-entropy on slightly moved images.

Shape letters: B batch, C channels, H W space, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldmlab.errors import ConfigError
from ldmlab.metrics.shapes_classifier import ShapesClassifier
from ldmlab.randomness import Draws


class ClassifierLoss:
    """Trains an extractor with logits on `batch["image"]` (float in [-1, 1]) and `batch["label"]`.

    Each image is shifted by up to 1/16 of its side (edges repeated), drawn by position, so that a small budget does not
    end in learning places by heart.
    """

    players: tuple[str, ...] = ("classifier",)

    def __init__(self, classifier: ShapesClassifier, draws: Draws):
        self.modules: dict[str, nn.Module] = {"classifier": classifier}
        self.draws = draws
        self.n_classes = classifier.logit_dim

    def active(self, player: str, images_seen: int) -> bool:
        return True

    def on_step_end(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Nothing outlives a step here."""
        return {}

    def loss(self, batch: dict[str, Tensor], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy, and logs: loss and accuracy. Raises ConfigError when the data set has no labels."""
        if "label" not in batch:
            raise ConfigError(
                "eval.extractor: a classifier can only be trained on data with labels; choose another eval=…."
            )
        image_BCHW, label_B = batch["image"], batch["label"].to(batch["image"].device)
        K = self.n_classes
        if int(label_B.max()) >= K:
            raise ConfigError(
                f"eval.extractor.n_classes={K}, but the data has a label {int(label_B.max())}; set it to the number of "
                "classes of the data."
            )
        u_B2 = self.draws.rand("classifier shift", batch["position"], (2,), image_BCHW.device)
        logits_BK = self.modules[player](shift(image_BCHW, u_B2)).logits_BK
        loss = nn.functional.cross_entropy(logits_BK.float(), label_B)
        accuracy = (logits_BK.argmax(dim=1) == label_B).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": accuracy.detach()}


def shift(image_BCHW: Tensor, u_B2: Tensor) -> Tensor:
    """Each image moved by whole pixels, uniform in ± side/16 for `u_B2` uniform in [0, 1); edges are repeated."""
    H, W = image_BCHW.shape[2:]
    reach = torch.tensor([H // 16, W // 16], device=image_BCHW.device)
    move_B2 = (u_B2 * (2 * reach + 1)).floor().long() - reach
    row_BH = (torch.arange(H, device=image_BCHW.device) + move_B2[:, :1]).clamp(0, H - 1)
    column_BW = (torch.arange(W, device=image_BCHW.device) + move_B2[:, 1:]).clamp(0, W - 1)
    b_B11 = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None, None]
    moved_BHWC = image_BCHW.permute(0, 2, 3, 1)[b_B11, row_BH[:, :, None], column_BW[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)
