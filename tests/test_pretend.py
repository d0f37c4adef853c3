"""The GPU that is not there sees what a real one would have waited for, and takes what a real one would take."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ldmlab.pipeline.pretend import CUDA, PretendedCuda


@pytest.fixture
def device() -> Iterator[PretendedCuda]:
    with PretendedCuda() as pretended:
        yield pretended


def test_the_host_computes_and_the_device_has_shapes(device: PretendedCuda) -> None:
    assert (torch.arange(4) * 2).sum().item() == 12
    x = torch.ones(2, 3, device="cuda") @ torch.ones(3, 5, device=CUDA)
    assert x.shape == (2, 5) and x.device == CUDA and x.dtype == torch.float32
    assert device.events == []


def test_what_waits_is_seen_where_it_is(device: PretendedCuda) -> None:
    x = torch.ones(3, device=CUDA)
    found: list[str] = []

    def seen(kind: str) -> None:
        assert [event.kind for event in device.events] == [kind], found
        assert "test_pretend.py" in device.events[0].place
        device.clear()

    x.sum().item()
    seen("read")
    assert bool((x > 0).all())
    seen("read")
    assert x.cpu().device.type == "cpu"
    seen("read")
    x.tolist()
    seen("read")
    torch.tensor([1.0, 2.0], device=CUDA)
    seen("pageable")
    torch.arange(3).to(CUDA, non_blocking=True)
    seen("pageable")
    torch.arange(3).pin_memory().to(CUDA, non_blocking=True)
    seen("copy")
    x[torch.tensor([0, 2])]
    seen("pageable")
    x.double()
    seen("float64")
    with pytest.raises(Exception, match="nonzero"):
        x.nonzero()
    seen("shape")


def test_a_tensor_left_on_the_cpu_is_refused(device: PretendedCuda) -> None:
    with pytest.raises(RuntimeError, match=r"of the CPU in an operation on cuda"):
        torch.ones(3, device=CUDA) + torch.ones(3)
    assert (torch.ones(3, device=CUDA) * torch.tensor(2.0)).device == CUDA  # a number travels with the kernel


def test_a_network_moves_and_trains_in_bf16(device: PretendedCuda) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3)).to(CUDA)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    device.clear()
    with torch.autocast("cuda", torch.bfloat16):
        y = net(torch.ones(2, 3, 8, 8, device=CUDA))
    assert y.dtype == torch.bfloat16 and net[0].weight.is_contiguous(memory_format=torch.channels_last)
    y.float().square().mean().backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    assert all(p.grad.device == CUDA and p.grad.shape == p.shape for p in net.parameters())  # type: ignore[union-attr]
    assert device.events == []


def test_nothing_is_left_behind() -> None:
    changed = ((torch, "Generator"), (torch.cuda, "synchronize"), (torch.utils, "swap_tensors"), (FakeTensor, "tolist"))
    before = [vars(owner).get(name) for owner, name in changed]
    with pytest.raises(KeyError), PretendedCuda():
        assert all(vars(owner).get(name) is not was for (owner, name), was in zip(changed, before, strict=True))
        raise KeyError
    assert all(vars(owner).get(name) is was for (owner, name), was in zip(changed, before, strict=True))
    assert type(torch.Generator()).__name__ == "Generator" and isinstance(torch.Generator(), torch.Generator)
    assert torch.ones(2).tolist() == [1.0, 1.0]
    net = nn.Linear(2, 2).to(torch.float64)
    net(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
