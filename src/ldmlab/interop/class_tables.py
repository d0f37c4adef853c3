"""Classes that join the time embedding: our table and the network's own map of it ↔ the plain table that others have."""

from collections.abc import Mapping

import torch
from torch import Tensor

TABLE = "conditioner.embedding.weight"  # of the class conditioner; its last row means "no class"
MAP = "network.vector_embed"


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a table of classes to add to the time embedding: what the network's own map (`vector_embed`) makes of each row.

    A table has few rows, so the map is its values; computed in float64, they differ from the network's by rounding alone. Without
    such a map the tensors come back as they are.
    """
    layers = sorted({name.rpartition(".")[0] for name in tensors if name.startswith(MAP)})
    if not layers:
        return dict(tensors)
    table = tensors[TABLE].double()
    for i, layer in enumerate(layers):
        table = torch.nn.functional.silu(table) if i else table
        table = torch.nn.functional.linear(table, *(tensors[f"{layer}.{kind}"].double() for kind in ("weight", "bias")))
    return {**{name: v for name, v in tensors.items() if not name.startswith(MAP)}, TABLE: table.float()}
