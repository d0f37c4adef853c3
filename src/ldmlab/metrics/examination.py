"""What a trained `Classifier` knows of images that it has not seen, beside what guessing would give.

Shape letters: N images, K classes, D numbers of a vector.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmlab.data.base import ImageDataset, to_batch
from ldmlab.data.batches import eight_bits
from ldmlab.data.parcel import on_device
from ldmlab.metrics.classifier import TURNS, Classifier, turned


@dataclass(frozen=True)
class Known:
    """Of one field: the share of right answers beside the share of the commonest one; of a vector R², beside 0 for its mean."""

    value: float
    trivial: float
    what: str  # accuracy or R²

    def words(self, field: str) -> str:
        """E.g. "label 98.3 % (commonest 10.6 %)"."""
        return (
            f"{field} {self.value:.1%} (commonest {self.trivial:.1%})"
            if self.what == "accuracy"
            else f"{field} R² {self.value:.2f}"
        )


@torch.no_grad()
def examine(net: Classifier, data: ImageDataset, device: torch.device, size: int = 250) -> dict[str, Any]:
    """Field → `Known` as a dict, over all images of `data`; the classifier must be in eval mode."""
    said: dict[str, list[Tensor]] = {name: [] for name in net.values}
    truth: dict[str, list[Tensor]] = {name: [] for name in net.values}
    for begin in range(0, len(data), size):
        rows = list(range(begin, min(begin + size, len(data))))
        batch = to_batch(data.__getitems__(rows))
        image_BCHW = on_device(eight_bits(batch["image"]).permute(0, 3, 1, 2), device)
        if TURNS in net.values:
            batch[TURNS] = torch.tensor(rows) % 4
            image_BCHW = turned(image_BCHW, on_device(batch[TURNS], device))
        raw_BD = net.raw(image_BCHW.float() / 127.5 - 1)
        for name in net.values:
            said[name].append(net.heads[name](raw_BD).float().cpu())
            truth[name].append(batch[name])
    return {name: asdict(_known(torch.cat(said[name]).numpy(), torch.cat(truth[name]).numpy())) for name in net.values}


def _known(said: np.ndarray, truth: np.ndarray) -> Known:
    if np.issubdtype(truth.dtype, np.floating):
        spread = ((truth - truth.mean(axis=0)) ** 2).sum()
        return Known(1.0 - float(((truth - said) ** 2).sum() / spread) if spread else 0.0, 0.0, "R²")
    return Known(float((said.argmax(axis=1) == truth).mean()), float(np.bincount(truth).max() / len(truth)), "accuracy")


def in_words(known: dict[str, Any]) -> str:
    """All fields in one line."""
    return " · ".join(Known(**row).words(field) for field, row in known.items())
