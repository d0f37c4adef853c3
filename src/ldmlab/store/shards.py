"""Checkpoints written by all ranks at once, each its own parts (torch.distributed.checkpoint); any number of ranks reads them.

A file a rank, `__<rank>_<n>.distcp`, and `.metadata`, which says where the parts of each tensor lie. Optimisers' options are not
in it: they follow from the configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ldmlab.errors import DataError

INDEX = ".metadata"
OPTIMIZER = "optimizer."  # optimizer.<player>/<number of the parameter>/<name>


def are_in(folder: Path) -> bool:
    """Whether a generation was written by several ranks."""
    return (folder / INDEX).is_file()


def flat(tensors: Mapping[str, Tensor], optimizers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name with the optimisers' state beside them. optimizers: player → `Optimizer.state_dict()`."""
    states = {
        f"{OPTIMIZER}{player}/{number}/{name}": value
        for player, optimizer in optimizers.items()
        for number, state in optimizer["state"].items()
        for name, value in state.items()
    }
    return {**tensors, **states}


def write(folder: Path, tensors: Mapping[str, Tensor], optimizers: Mapping[str, Any]) -> None:
    """This rank's parts into `folder`; called on all ranks. Raises what the disk said, on all ranks."""
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(flat(tensors, optimizers), storage_writer=dcp.FileSystemWriter(folder))
    except dcp.api.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def read(folder: Path, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, player → {"state": …}) of what `write` wrote.

    like: name → a tensor that is split as the one read shall be, of which this rank reads its part; for an optimiser's state
    the parameter, as `optimizer.<player>/<number>`. Other tensors are read whole. With `like`, called on all ranks.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    found, entries = {}, cast(dict[str, Any], reader.read_metadata().state_dict_metadata)
    for name, entry in entries.items():
        split = like.get(name, like.get(name.rpartition("/")[0]))
        if split is not None and split.shape == entry.size:
            found[name] = torch.empty_like(split, dtype=entry.properties.dtype)
        else:
            found[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    try:
        dcp.load(found, storage_reader=reader, no_dist=not like)
    except dcp.api.CheckpointException as error:
        raise DataError(f"{folder} cannot be read: {next(iter(error.failures.values()))[0]}.") from None
    tensors = {name: value for name, value in found.items() if not name.startswith(OPTIMIZER)}
    optimizers: dict[str, Any] = {}
    for name in sorted(found.keys() - tensors.keys()):
        player, number, key = name.removeprefix(OPTIMIZER).rsplit("/", 2)
        optimizers.setdefault(player, {"state": {}})["state"].setdefault(int(number), {})[key] = found[name]
    return tensors, optimizers
