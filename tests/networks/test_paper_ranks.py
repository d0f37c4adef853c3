"""The paper's networks on 8 ranks: what each holds and sends, against its parameters split by torch itself."""

import pytest
from test_paper_networks import NETWORKS, network, options
from torch import nn

from ldmlab import build
from ldmlab.pipeline.per_rank import Training
from ldmlab.training.sharding import blocks

RANKS = 8


def transformer(name: str) -> nn.Module:
    with build.shapes_only():
        net: nn.Module = build.part(
            options(name).network, in_channels=4, out_channels=4, context_dim=None, vector_dim=1152
        )
        return net


def made(name: str) -> nn.Module:
    if name.startswith("dit"):
        return transformer(name)
    row = NETWORKS[name]
    return network(name, row.c, row.concat, row.tokens)


@pytest.mark.parametrize("name", [*NETWORKS, "dit_xl_2"])
def test_memory_and_communication_are_counted_from_the_parameters(name: str) -> None:
    net = made(name)
    training = Training(net, False, 2, RANKS, micros=3, activations=7, calls=dict.fromkeys(blocks(net), 1))
    ddp, split = training.replicated(), training.split()
    whole = sum(4 * p.numel() for p in net.parameters())
    assert (ddp.weights, ddp.gradients, ddp.buffers, ddp.optimizer, ddp.averages) == (
        whole,
        whole,
        whole,
        2 * whole,
        2 * whole,
    )
    assert ddp.memory == 7 * whole + 7
    assert ddp.sent == 2 * whole * 7 // 8  # a ring's all-reduce passes each eighth on seven times, twice

    part = {p: 4 * p.chunk(RANKS)[0].numel() for p in net.parameters()}  # rank 0 has the largest
    first = sum(part.values())
    assert whole / RANKS <= first < 1.01 * whole / RANKS
    assert (split.weights, split.gradients, split.optimizer, split.averages) == (first, first, 2 * first, 2 * first)
    inside = {p for block in blocks(net) for p in block.parameters()}
    outside = [p for p in net.parameters() if p not in inside]
    rest = sum(4 * p.numel() for p in outside)
    largest = max(sum(4 * p.numel() for p in block.parameters()) for block in blocks(net))
    assert split.gathered == rest + 2 * largest and rest < 0.03 * whole and largest < 0.2 * whole
    assert split.buffers == 2 * max(largest, rest)
    twice = sum(part[p] for p in inside)  # forward and backward
    assert split.sent == 3 * (RANKS - 1) * (sum(part[p] for p in outside) + 2 * twice + first)
    assert 1.4 < split.sent / (3 * ddp.sent) < 1.52  # of one micro-batch
