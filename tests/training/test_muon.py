"""Muon: orthogonalised steps of hidden weights against the SVD and the plain iteration, all other steps against AdamW."""

import io
import math

import pytest
import torch
from torch import Tensor, nn

from ldmlab.build import optimizer
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.stage import trained
from ldmlab.training.muon import COEFFICIENTS, ITERATIONS, MOMENTUM, Muon, hidden_weights, orthogonalised


def of_singular_values(rows: int, columns: int, values: Tensor, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=g))[0]
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=g))[0]
    return left @ values.diag() @ right.T


@pytest.mark.parametrize("shape", [(24, 80), (80, 24), (32, 32)])
def test_directions_stay_and_their_lengths_become_alike(shape: tuple[int, int]) -> None:
    matrix = of_singular_values(*shape, torch.logspace(-1, 1, 24))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left[:, :24].T @ orthogonalised(matrix) @ right[:24].T  # diagonal in the matrix's own directions
    assert (turned - turned.diagonal().diag()).abs().max() < 2e-3
    assert turned.diagonal().min() > 0.65 and turned.diagonal().max() < 1.25


def test_the_gram_matrix_alone_is_the_iteration() -> None:
    matrix = of_singular_values(48, 200, torch.logspace(-3, 0, 48))
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = (a * torch.eye(48) + b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalised(matrix).double(), x, rtol=0, atol=2e-4)


def test_nothing_to_turn() -> None:
    assert not orthogonalised(torch.zeros(16, 32)).any()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.hidden = nn.Conv2d(16, 24, 3)
        self.table = nn.Embedding(20, 24)
        self.linear = nn.Linear(24, 32)
        self.norm = nn.LayerNorm(32)
        self.last = nn.Linear(32, 3)


def with_gradients(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net()
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    return net


def test_which_weights_are_hidden() -> None:
    net = Net()
    assert {id(w) for w in hidden_weights(net)} == {id(net.hidden.weight), id(net.linear.weight)}
    net.linear.weight.requires_grad_(False)
    assert [id(w) for w in hidden_weights(net)] == [id(net.hidden.weight)]


def test_a_first_step_in_closed_form() -> None:
    """The momentum after one step is 0.05 g, Nesterov's look ahead 0.0975 g: its direction is the gradient's own."""
    net, twin = with_gradients(), with_gradients()
    lr, decay = 0.02, 0.1
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    gradient = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    Muon(net, lr, (0.9, 0.99), decay).step()
    torch.optim.AdamW(twin.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True).step()
    for (name, after), (_, adam) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        if name in ("hidden.weight", "linear.weight"):
            matrix = gradient[name].flatten(1)
            step = 0.2 * math.sqrt(max(matrix.shape)) * orthogonalised(matrix).view_as(after)
            torch.testing.assert_close(after, before[name] * (1 - lr * decay) - lr * step, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(after, adam), name


def test_momentum_of_two_steps() -> None:
    net = with_gradients()
    first = net.linear.weight.grad.clone()  # type: ignore[union-attr]
    muon = Muon(net, 1e-3, (0.9, 0.99), 0.0)
    muon.step()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    muon.step()
    expected = MOMENTUM * (1 - MOMENTUM) * first + (1 - MOMENTUM) * torch.ones_like(first)
    torch.testing.assert_close(muon.state[net.linear.weight]["momentum"], expected)


def test_a_restart_changes_no_bit() -> None:
    def steps(net: Net, muon: Muon, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            for p in net.parameters():
                p.grad = torch.randn_like(p)
            muon.step()

    def made() -> tuple[Net, Muon]:
        net = with_gradients()
        return net, Muon(net, 1e-2, (0.9, 0.99), 0.01)

    straight, muon = made()
    steps(straight, muon, range(6))
    net, muon = made()
    steps(net, muon, range(3))
    file = io.BytesIO()
    torch.save(muon.state_dict(), file)
    weights = net.state_dict()
    net, muon = made()
    net.load_state_dict(weights)
    file.seek(0)
    muon.load_state_dict(torch.load(file, weights_only=True))
    steps(net, muon, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), net.parameters(), strict=True))


def test_the_option_and_the_address() -> None:
    """adamw is in no address, so that denoisers from before there was a choice keep theirs."""
    words = ["debug=tiny", "data=shapes", "data.resolution=16"]
    adamw, muon = (load([*words, f"ldm.fit.optimizer={name}"]).cfg.ldm.fit for name in ("adamw", "muon"))
    assert "optimizer" not in trained(adamw) and trained(muon)["optimizer"] == "muon"
    assert type(optimizer(Net(), adamw)) is torch.optim.AdamW and type(optimizer(Net(), muon)) is Muon


def test_the_first_stages_option_and_its_address() -> None:
    """The same choice, of the decoder that learns on too; one that is neither is refused in one line."""
    words = ["debug=tiny", "data=shapes", "data.resolution=16", "ae=kl_f4_quick"]
    adamw, muon = (load([*words, f"ae.fit.optimizer={name}"]).cfg.ae for name in ("adamw", "muon"))
    assert muon.decoder_fit.optimizer == "muon" and type(optimizer(Net(), muon.fit)) is Muon
    for fit in ("fit", "decoder_fit"):
        assert "optimizer" not in trained(adamw[fit]) and trained(muon[fit])["optimizer"] == "muon"
    assert "keep_state" not in trained(adamw.fit)
    with pytest.raises(ConfigError, match=r"ae\.fit\.optimizer must be one of .*Did you mean 'muon'"):
        load([*words, "ae.fit.optimizer=moun"])
