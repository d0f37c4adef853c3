"""Class labels as they are: a one at the class, zeros elsewhere. For what keeps its own numbers for each class.

Shape letters: B batch, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond, Size


class OneHot(nn.Module):
    """Field "label" → vector [B, K]. Nothing in it learns. The null condition is all classes in equal parts, 1/K each."""

    needs = ("label",)
    context_dim: int | None = None
    concat_channels = 0

    def __init__(self, n_classes: int):
        super().__init__()
        self.vector_dim: int | None = n_classes

    def forward(self, batch: dict[str, Any]) -> Cond:
        """float32 [B, K] of batch["label"] (int64 [B])."""
        return Cond(vector_BD=nn.functional.one_hot(batch["label"].long(), self.vector_dim or 0).float())

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        classes = self.vector_dim or 0
        parts_BK: Tensor = torch.full((batch_size, classes), 1 / classes, device=device)
        return Cond(vector_BD=parts_BK)
