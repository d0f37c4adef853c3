"""Networks are one graph, whole or block by block: no break, no second compilation while only time and sizes change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_inputs import cond, inputs, stirred
from torch import nn

from ldmlab.autoencoders.conv import Attention, ConvDownsample, ConvResidual, ConvUpsample
from ldmlab.autoencoders.discriminator import PatchGAN
from ldmlab.autoencoders.residual import Down, Up
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.networks.compiled import Replayed, compile_blocks
from ldmlab.networks.dit import DiT
from ldmlab.networks.unet import UNet

pytestmark = pytest.mark.slow
STEPS = 100


def net() -> UNet:
    torch.manual_seed(0)
    return stirred(UNet(4, 4, 32, [1], 1, attention_factors=[1], heads=1, context_dim=8))


@pytest.mark.parametrize("ready", [False, True])
def test_one_graph_for_a_hundred_times(ready: bool) -> None:
    """Breaks and recompilations are dynamo's; its graph runs without inductor here, which would only take longer."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs: list[Any] = []

    def counted(graph: Any, given: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    unet = net().eval().requires_grad_(False)
    compiled = torch.compile(unet, fullgraph=True, backend=counted)
    z, _ = inputs()
    told: Any = cond(tokens=torch.randn(3, 5, 8))
    told = unet.prepared(told) if ready else told
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for t in torch.linspace(999, 0, STEPS).long():
            found = compiled(z, t.expand(3), told)
    assert len(graphs) == 1 and not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(found, unet(z, torch.zeros(3, dtype=torch.long), told), rtol=1e-4, atol=1e-5)


def test_the_denoiser_compiles_in_place_and_trains_alike() -> None:
    """The whole denoiser, conditioner and dropping included, backward too.

    Its operations run as they are (aot_eager): inductor's kernels take minutes to build on a CPU.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, fast = (Denoiser(net(), ClassLabel(3, dim=8)) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    fast.compile(backend="aot_eager", fullgraph=True)
    z, _ = inputs()
    drop = torch.tensor([False, True, False])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for t in (0, 500, 999):
            t_B = torch.full((3,), t)
            outs = [model(z, t_B, {"label": torch.tensor([0, 1, 2])}, drop) for model in (plain, fast)]
            torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-5)
            for out in outs:
                out.square().mean().backward()
    for (name, a), (other, b) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert name == other  # compiled in place: a checkpoint has the same names
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-4)


def graphs_of(network: Any) -> list[Any]:
    """The graphs that the blocks of a network compile to, as they come; they run as they are."""
    graphs: list[Any] = []

    def counted(graph: Any, given: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = compile_blocks(network, backend=counted)
    assert found == sum(getattr(type(module), "one_graph", False) for module in network.modules()) > 0
    return graphs


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(4, 4, 32, [1, 2], 1, attention_factors=[2], heads=1, context_dim=8),
    "dit": lambda: DiT(4, 4, 32, 1, 2, context_dim=8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_block_is_one_graph_whatever_the_time_the_sizes_and_the_guidance(name: str) -> None:
    plain = stirred(NETWORKS[name]()).eval().requires_grad_(False)
    fast = copy.deepcopy(plain)
    graphs, count = graphs_of(fast), 0
    for B, size in ((3, 8), (6, 8), (2, 16)):  # guidance doubles B
        z, told = torch.randn(B, 4, size, size), cond(tokens=torch.randn(B, 5, 8))
        for t in (0, 999):
            t_B = torch.full((B,), t)
            torch.testing.assert_close(fast(z, t_B, told), plain(z, t_B, told))
            count = count or len(graphs)
    blocks = sum(getattr(type(module), "one_graph", False) for module in fast.modules())
    assert count == len(graphs) == blocks and not torch._dynamo.utils.counters["graph_break"]


def test_blocks_of_a_first_stage_train_alike_and_the_discriminator_stays_as_it_is() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        ConvResidual(32, 64), Attention(64), ConvDownsample(64), Down(64, 64, True), Up(64, 64, True), ConvUpsample(64)
    )
    fast = copy.deepcopy(plain)
    graphs = graphs_of(fast)
    x = torch.randn(2, 32, 8, 8)
    for network in (plain, fast):
        network(x).square().mean().backward()
    assert len(graphs) == len(plain) and not torch._dynamo.utils.counters["graph_break"]
    assert list(plain.state_dict()) == list(fast.state_dict())
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert not any(getattr(type(module), "one_graph", False) for module in PatchGAN().modules())


def test_a_recorded_network_answers_as_the_network() -> None:
    """`Replayed` with a recording that runs the work again on the fixed tensors, as a CUDA graph does."""
    network, made = net().eval().requires_grad_(False), 0

    def record(work: Any) -> Any:
        nonlocal made
        made += 1
        out = work()
        return out, lambda: out.copy_(work())

    recorded = Replayed(network, record)
    conditions = [network.prepared(cond(tokens=torch.randn(3, 5, 8))) for _ in range(2)]
    for told in (*conditions, conditions[0]):
        for t in (0, 500):
            z, t_B = torch.randn(3, 4, 8, 8), torch.full((3,), t)
            first = recorded(z, t_B, told)
            torch.testing.assert_close(first, network(z, t_B, told))
            kept = first.clone()
            recorded(torch.randn_like(z), t_B, told)
            assert torch.equal(first, kept)  # what it gave is not written over
    assert made == 1
    z = torch.randn(6, 4, 8, 8, requires_grad=True)
    assert (
        recorded(z, torch.zeros(6, dtype=torch.long), network.prepared(cond(tokens=torch.randn(6, 5, 8)))).requires_grad
        and made == 1
    )
