"""A training whose weights, gradients, optimiser state and averages are split among the ranks: FSDP2 (`fully_shard`).

Source: Zhao et al. 2304.11277; ZeRO stage 3 of Rajbhandari et al. 1910.02054. Each rank keeps 1/W of every tensor (its share of
the rows). A block is gathered before its forward and before its backward pass and freed after each; its gradients are
summed and split in one step. Gathering is in float32, whatever `fit.precision`, so that the result is that of one process up
to the order of sums.
"""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn

from ldmlab.networks.blocks import Pieces

SMALL = 1e-3  # of all parameters: a block with fewer travels with the rest


def blocks(module: nn.Module) -> list[nn.Module]:
    """The modules that are gathered each by itself: a UNet's `Pieces` and the members of ModuleLists, outermost first.

    Not conditioners in a list, which are asked for their null condition too and not only called. What is in no block is
    gathered for the whole step.
    """
    least = SMALL * sum(p.numel() for p in module.parameters())
    return [block for block in _blocks(module) if sum(p.numel() for p in block.parameters()) >= least]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        listed = isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList)
        if isinstance(child, Pieces) or (listed and not hasattr(child, "concat_channels")):
            yield child
        else:
            yield from _blocks(child)


def shard(module: nn.Module, device: torch.device, ranks: int) -> None:
    """Split the module's parameters among all ranks, in place; its parts come to `device` one block at a time.

    Call it on every rank with equal contents, before optimisers and averages are made.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks,))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def prepared(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module as a training calls it: sharded as it is, else as Accelerate replicates it."""
    if hasattr(module, "set_requires_gradient_sync"):  # of FSDP2
        return module
    found: nn.Module = accelerator.prepare(module)
    return found
