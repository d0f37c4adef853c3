"""How a batch becomes the loss of a segmenter: CE(class of each pixel) + MSE(depth).

Shape letters: B batch, C channels, H W pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.metrics.segmenter import Segmenter
from ldmlab.training.loop import TrainingLoss


class SegmenterLoss(TrainingLoss):
    """Trains a `Segmenter` on `batch["image"]` (float in [-1, 1]) and the maps that the batch has.

    classes: the field of class numbers, integer [B, H, W]. depth: the field of depths, float [B, H, W] in [0, 1]; without
    one (None) the head for it learns nothing.
    """

    players: tuple[str, ...] = ("segmenter",)

    def __init__(self, segmenter: Segmenter, classes: str, depth: str | None):
        self.modules: dict[str, nn.Module] = {"segmenter": segmenter}
        self.classes, self.depth = classes, depth

    def loss(self, batch: dict[str, Tensor], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and logs: it, and "pixels_right", the share of pixels whose likeliest class is right."""
        said, truth_BHW = self.modules[player](batch["image"]), batch[self.classes].long()
        loss = F.cross_entropy(said.logits_BKHW, truth_BHW)
        if self.depth is not None:
            loss = loss + F.mse_loss(said.depth_BHW, batch[self.depth].float())
        with torch.no_grad():
            right = (said.logits_BKHW.argmax(dim=1) == truth_BHW).float().mean()
        return loss, {"loss": loss.detach(), "pixels_right": right}
