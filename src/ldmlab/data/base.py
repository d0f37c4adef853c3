"""What every data set promises, and how samples become a batch.

Shape letters: B batch, H W space, C channels, N images of a data set.
"""

import hashlib
import json
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ldmlab.data.fields import Field

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Sample = dict[str, Any]
"""One example: "image" uint8 [resolution, resolution, C], C = 3 (RGB) unless the data says otherwise, uint16 where it has 16 bits; and
one entry per declared field."""


@runtime_checkable
class ImageDataset(Protocol):
    """A finite, map-style set of square RGB images with named extras.

    `flip` says that training may mirror an image left-right with probability 1/2; the mirroring itself happens later,
    on the batch.
    """

    resolution: int
    flip: bool
    fields: tuple[str, ...]  # beside "image", which is always there
    declared: tuple[Field, ...]  # what each of them is, and what a mirror image and a crop do to it
    class_names: tuple[str, ...]  # () without labels

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample: ...

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """A whole batch at once; a DataLoader calls this instead of `[i]` where it exists."""
        ...

    def labels(self) -> np.ndarray:
        """int64 [N], without decoding an image; DataError when there are none."""
        ...

    def split_record(self) -> dict[str, object]:
        """How the splits were made, for cards."""
        ...

    def fingerprint(self) -> str:
        """sha256 (hex) over everything that decides the images, and nothing about where they lie."""
        ...


class Examples(Protocol):
    """What training reads, by index: an `ImageDataset`, or its cached latents."""

    flip: bool
    fields: tuple[str, ...]
    declared: tuple[Field, ...]

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> list[Sample] | dict[str, Any]:
        """Samples, or the whole batch as it is."""
        ...


def channels_of(dataset: Any) -> int:
    """C of its images: what it says in `channels`, else 3."""
    return int(getattr(dataset, "channels", 3))


def digest(facts: dict[str, Any]) -> str:
    """sha256 (hex) of canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_batch(samples: list[Sample]) -> dict[str, Any]:
    """Stacks samples: arrays to tensors [B, ...] of the same type ("image": uint8 BHWC), integers to int64 [B], text
    stays a list."""
    return {name: _stack([sample[name] for sample in samples]) for name in samples[0]}


def _stack(values: list[Any]) -> Tensor | list[Any]:
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    if isinstance(values[0], int | np.integer):
        return torch.tensor(values, dtype=torch.int64)
    return values
