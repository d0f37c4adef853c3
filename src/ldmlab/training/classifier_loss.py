"""How a batch becomes the loss of a feature extractor that is trained here.

loss = CE(label) + 0.1 · (CE of each other class number + 12 · MSE of each vector) + 0.5 · MSE(changes)

Shape letters: B batch, C channels, H W space.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.errors import ConfigError
from ldmlab.metrics.classifier import TURNS, Classifier, turned
from ldmlab.randomness import Draws
from ldmlab.training.changes import changed
from ldmlab.training.loop import TrainingLoss

OTHERS = 0.1  # weight of what is learnt beside the label: with 0.5 the label came far too late (docs/log.md)
UNIFORM = 12.0  # 1 / variance of a uniform number in [0, 1]: what a vector's square error is compared with
CHANGED = 0.5  # of naming the changes, which moves the early layers alone; 2 leaves the label too little of the clipped gradient


class ClassifierLoss(TrainingLoss):
    """Trains a `Classifier` on `batch["image"]` (float in [-1, 1]) and the fields that it learns.

    Each image is shifted by up to 1/16 of its side (edges repeated), drawn by position, so that a small budget does not
    end in learning places by heart. Vectors are learnt where the image was before.
    """

    players: tuple[str, ...] = ("classifier",)

    def __init__(self, classifier: Classifier, draws: Draws):
        self.modules: dict[str, nn.Module] = {"classifier": classifier}
        self.draws = draws
        self.values = classifier.values

    def loss(self, batch: dict[str, Tensor], player: str, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and logs: it, "accuracy" of the first field and "changes", the mean square error of naming them.

        Raises ConfigError when the data lacks a field or has a class number that the classifier does not know.
        """
        image_BCHW = batch["image"]
        u_B2 = self.draws.rand("classifier shift", batch["position"], (2,), image_BCHW.device)
        image_BCHW = shift(image_BCHW, u_B2)
        if TURNS in self.values:
            turn_B = (4 * self.draws.rand("classifier turn", batch["position"], (), image_BCHW.device)).long()
            image_BCHW, batch = turned(image_BCHW, turn_B), {**batch, TURNS: turn_B}
        other_BCHW, target_B5 = changed(image_BCHW, batch["position"], self.draws)
        answers = self.modules[player](image_BCHW, other_BCHW)
        changes = F.mse_loss(answers["changes"].float(), target_B5)
        total = CHANGED * changes
        main = "label" if "label" in self.values else TURNS
        for name, values in self.values.items():
            truth = self._truth(name, values, batch)
            weight = 1.0 if name == main else OTHERS
            said = answers[name].float()
            error = UNIFORM * F.mse_loss(said, truth) if truth.is_floating_point() else F.cross_entropy(said, truth)
            total = total + weight * error
        accuracy = (answers[main].argmax(dim=1) == self._truth(main, self.values[main], batch)).float().mean()
        return total, {"loss": total.detach(), "accuracy": accuracy.detach(), "changes": changes.detach()}

    def _truth(self, name: str, values: int, batch: dict[str, Tensor]) -> Tensor:
        if name not in batch:
            raise ConfigError(
                f"eval.extractor.learns: the data gives no {name!r}; leave it out, or choose another eval=…."
            )
        truth = batch[name]
        if truth.is_floating_point():
            return truth
        if truth.device.type != "cpu":  # nothing waits for a GPU's answer; it stops the kernels that follow
            torch._assert_async(
                (truth < values).all(), f"the data declares {values} of {name}, and has a larger number"
            )
        elif int(truth.max()) >= values:
            raise ConfigError(
                f"eval.extractor.learns: the data has a {name} {int(truth.max())}, and declares {values} of them. Mend the data."
            )
        return truth


def shift(image_BCHW: Tensor, u_B2: Tensor) -> Tensor:
    """Each image moved by whole pixels, uniform in ± side/16 for `u_B2` uniform in [0, 1); edges are repeated."""
    H, W = image_BCHW.shape[2:]
    down_B1, right_B1 = (
        (u_B[:, None] * (2 * reach + 1)).floor().long() - reach
        for u_B, reach in zip(u_B2.unbind(1), (H // 16, W // 16), strict=True)
    )
    row_BH = (torch.arange(H, device=image_BCHW.device) + down_B1).clamp(0, H - 1)
    column_BW = (torch.arange(W, device=image_BCHW.device) + right_B1).clamp(0, W - 1)
    b_B11 = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None, None]
    moved_BHWC = image_BCHW.permute(0, 2, 3, 1)[b_B11, row_BH[:, :, None], column_BW[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)
