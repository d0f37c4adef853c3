"""Class labels: one learned embedding per class, as a token for cross-attention (the paper's ImageNet models;
ClassEmbedder of ldm/modules/encoders/modules.py) or as a vector that joins the time embedding (ADM's way).

Shape letters: B batch, L tokens, D features.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond, Size
from ldmlab.errors import ConfigError, DataError
from ldmlab.ranges import Given, Width


class ClassLabel(nn.Module):
    """Field "label" → one learned embedding; one more row, the last, means "no class".

    Args:
        n_classes: classes of the data set (given by the assembly, never an option).
        dim: features of the embedding; 512 in the paper.
        form: "token", [B, 1, dim] for cross-attention, as the paper; "vector", [B, dim], which reaches every residual
            block through the time embedding (Dhariwal & Nichol 2021) and builds a network without cross-attention.

    The official guided model counts its null row the same way (1001 rows, row 1000; docs/paper.md#conditioning).
    """

    needs = ("label",)
    concat_channels = 0

    def __init__(self, n_classes: Annotated[int, Given], dim: Width = 512, form: Literal["token", "vector"] = "token"):
        super().__init__()
        if n_classes < 1:
            raise ConfigError(
                "cond=class_label needs data with classes, and this data set has none. "
                "Use cond=none, or data with labels (data=folder: one sub-folder per class)."
            )
        if dim < 1:
            raise ConfigError(f"cond.conditioner.dim must be at least 1; got {dim}.")
        self.n_classes = n_classes
        self.context_dim: int | None = dim if form == "token" else None
        self.vector_dim: int | None = dim if form == "vector" else None
        self.embedding = nn.Embedding(n_classes + 1, dim)

    def forward(self, batch: dict[str, Any]) -> Cond:
        """Tokens [B, 1, dim], or vectors [B, dim], of batch["label"] (int64 [B]).

        Raises DataError for a label outside 0 … n_classes-1, where looking costs nothing: on a CPU. On an accelerator,
        labels were checked when the data set counted them.
        """
        label_B: Tensor = batch["label"]
        if label_B.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(label_B.min()), int(label_B.max())
            if low < 0 or high >= self.n_classes:
                wrong = low if low < 0 else high
                raise DataError(
                    f"label {wrong} of a batch is outside 0 … {self.n_classes - 1}, the classes of this denoiser."
                )
        return self._cond(label_B)

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """The learned null embedding for each example."""
        null_B = torch.full((batch_size,), self.n_classes, dtype=torch.int64, device=device)
        return self._cond(null_B)

    def _cond(self, row_B: Tensor) -> Cond:
        embedding_BD = self.embedding(row_B)
        return Cond(tokens_BLD=embedding_BD[:, None]) if self.vector_dim is None else Cond(vector_BD=embedding_BD)


def class_index(label: int | str, class_names: Sequence[str]) -> int:
    """The class that `cond.label` asks for, by number or by name; ConfigError listing the classes if it is none."""
    if isinstance(label, str) and label in class_names:
        return list(class_names).index(label)
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(class_names):
        return label
    shown = [f"{i} {name}" for i, name in enumerate(class_names)]
    listed = ", ".join(shown) if len(shown) <= 20 else f"{', '.join(shown[:10])}, …, {shown[-1]}"
    raise ConfigError(f"cond.label={label!r} is not a class of this data set. Give a number or a name: {listed}.")
