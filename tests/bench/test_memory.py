"""Counting live bytes: exact where the answer is known, and the same with and without numbers."""

import contextlib

import pytest
import torch
from torch import nn

from ldmlab.bench.autoencoder import CHECKPOINTING, OFFICIAL, OURS, _parts, make_step
from ldmlab.config.compose import load
from ldmlab.pipeline.live_memory import LiveBytes, no_numbers, peak_bytes, tensors_of

MB = 1_000_000  # bytes of 250,000 float32


def chain() -> torch.Tensor:
    a = torch.ones(250_000)  # 1 MB
    b = a * 2  # 2
    c = b + 1  # 3, the peak
    del b  # 2
    d = c.view(500, 500)  # a view holds nothing new
    del a, c  # 1: d holds c's
    d.add_(1)  # in place
    return d * 2  # 2, and 1 after d is gone


@pytest.mark.parametrize("numbers", [True, False])
def test_a_known_chain(numbers: bool) -> None:
    with contextlib.nullcontext() if numbers else no_numbers(), LiveBytes() as count:
        kept = chain()
    assert (count.peak, count.live) == (3 * MB, MB)
    del kept
    assert count.live == 0


def test_what_autograd_keeps_and_frees() -> None:
    x = torch.ones(250_000, requires_grad=True)
    with LiveBytes([x]) as count:
        y = x.exp()  # keeps its result for the backward pass
        z = y.sigmoid()  # as well
        del y
        total = z.sum()
        del z
        assert count.live == 3 * MB + 4
        total.backward()
        del total
        assert count.live == 2 * MB  # x and its gradient
    # x, exp, sigmoid, the gradient of sigmoid's input and of exp's; 1 and its expanded view hold 8 bytes
    assert count.peak == pytest.approx(4 * MB, abs=16)


def test_given_tensors_count_and_shared_storage_counts_once() -> None:
    layer = nn.Linear(250, 1000, bias=False)  # 1 MB
    optimizer = torch.optim.Adam(layer.parameters())
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()  # two moments and a step counter
    assert sum(t.nbytes for t in tensors_of(layer, optimizer)) == 4 * MB + 4
    held = [layer.weight, layer.weight.view(-1), layer.weight.t()]
    assert peak_bytes(lambda: None, held, torch.device("cpu")) == MB


@pytest.mark.parametrize("name", [OFFICIAL, OURS, CHECKPOINTING])
def test_counting_without_numbers_is_counting(name: str) -> None:
    """The same step on real tensors: byte for byte the same peak."""
    words = [
        "ae=kl_f4",
        "ae.network.width=16",
        "ae.network.blocks=1",
        "ae/loss/perceptual=none",
        "ae.loss.norm_images=2",
    ]
    cfg = load([*words, "data.resolution=32"]).cfg
    peaks = []
    for numbers in (True, False):
        ae, loss = _parts(cfg, name)
        with contextlib.nullcontext() if numbers else no_numbers(ae, loss):
            step = make_step(cfg, name, ae, loss, 2, torch.device("cpu"))
            step.run()
            peaks.append(peak_bytes(step.run, step.held(), torch.device("cpu")))
    assert peaks[0] == peaks[1]
