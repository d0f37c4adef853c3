"""A batch in one piece of memory, so that it goes to a device in one copy that the host does not wait for.

A copy to a GPU from ordinary memory makes the host wait for it, and one copy for each field pays its latency for each. From
page-locked ("pinned") memory one copy runs beside everything else, in the order of the device's own work.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16  # bytes: where a tensor of any type may begin


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on `device`; to a GPU from the host by a copy that the host does not wait for."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def batch_on_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The tensors of a batch of the host on `device`, as `on_device` but all by one copy. The rest as it is."""
    if torch.device(device).type != "cuda":
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return Parcel(batch).sent(torch.device(device))


class Parcel:
    """The tensors of a batch, packed; what is no tensor stays beside them."""

    def __init__(self, batch: Mapping[str, Any]):
        self.rest = {name: value for name, value in batch.items() if not isinstance(value, Tensor)}
        tensors = {name: value.contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
        self.places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        end = 0
        for name, tensor in tensors.items():
            self.places[name] = end, tensor.dtype, tensor.shape
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        self.bytes = torch.empty(end, dtype=torch.uint8)
        for name, tensor in tensors.items():
            self._cut(self.bytes, name).copy_(tensor)

    def pin_memory(self) -> "Parcel":
        """In page-locked memory; a DataLoader calls it in a thread of its own."""
        self.bytes = self.bytes.pin_memory()
        return self

    def sent(self, device: torch.device) -> dict[str, Any]:
        """The batch with its tensors on `device`."""
        pinned = self.bytes if self.bytes.is_pinned() else self.bytes.pin_memory()
        there = pinned.to(device, non_blocking=True)
        return {**self.rest, **{name: self._cut(there, name) for name in self.places}}

    def _cut(self, whole: Tensor, name: str) -> Tensor:
        begin, dtype, shape = self.places[name]
        return whole[begin : begin + shape.numel() * dtype.itemsize].view(dtype).view(shape)
