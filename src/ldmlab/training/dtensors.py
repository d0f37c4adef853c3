"""Tensors of which each rank has a part (torch.distributed.tensor.DTensor), and how they become whole tensors and back.

Plain tensors pass through unchanged, so that callers need not know whether a training is sharded. What gathers is called on
all ranks in the same order.
"""

from typing import Any, cast

import torch
from torch import Tensor


def sharded(tensor: Any) -> bool:
    """Whether each rank has a part of it. (Asked by an attribute: importing DTensor takes a second.)"""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This rank's part, which shares its memory."""
    return cast(Tensor, tensor.to_local() if sharded(tensor) else tensor)


def whole(tensor: Any) -> Tensor:
    """The tensor gathered from all ranks, on the device of its parts."""
    return cast(Tensor, tensor.full_tensor() if sharded(tensor) else tensor)


@torch.no_grad()
def gathered(value: Any, keep: bool = True) -> Any:
    """`value` (a tensor, or dicts, lists and tuples of such) with whole tensors on the CPU in the place of sharded ones.

    One tensor is gathered at a time. keep: False leaves None in their place, for ranks that only take part.
    """
    if isinstance(value, dict):
        return {key: gathered(each, keep) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(each, keep) for each in value)
    if not sharded(value):
        return value
    found = whole(value.detach())
    if not keep:
        return None
    padded = (
        found.untyped_storage().nbytes() > found.nbytes
    )  # rows that do not divide: torch.save would keep the padding
    return found.clone().cpu() if padded else found.cpu()


@torch.no_grad()
def placed(value: Tensor, like: Any) -> Tensor:
    """A whole tensor, which every rank has, split as `like` is: this rank keeps its part. As it is where `like` is whole."""
    if not sharded(like) or sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    return distribute_tensor(value.detach().to(mesh.device_type), mesh, like.placements, src_data_rank=None)
