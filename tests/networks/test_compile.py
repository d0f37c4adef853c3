"""The UNet is one graph: no break, no second compilation while only the time changes."""

from typing import Any

import pytest
import torch
from network_inputs import cond, inputs, stirred

from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.diffusion.denoiser import Denoiser
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
    """As `Context.train` does for runtime.compile: the whole denoiser, conditioner and dropping included, backward too.

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
