import math

import pytest
import torch
from torch import nn

from ldmlab.autoencoders import kmeans as vq_module
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.autoencoders.kmeans import nearest
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.regularisers.none import NoRegulariser
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.errors import ConfigError


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_kl_closed_form_sums_elements_and_averages_the_batch():
    mean, logvar = normal(3, 2, 4, 4), 0.3 * normal(3, 2, 4, 4)
    z, loss, stats = KL(1e-6)(torch.cat([mean, logvar], 1), None)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    want = torch.distributions.kl_divergence(posterior, prior).sum() / 3
    torch.testing.assert_close(stats["kl"], want)
    torch.testing.assert_close(loss, 1e-6 * want)
    torch.testing.assert_close(stats["kl_bits"], want / math.log(2) / 32)
    torch.testing.assert_close(z, mean)


def test_kl_of_the_prior_is_zero_and_noise_is_an_argument():
    zeros, noise = torch.zeros(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
    z, loss, _ = KL()(zeros, noise)
    assert loss == 0 and torch.equal(z, noise)


def test_initial_logvar_is_the_untrained_encoders():
    torch.manual_seed(0)
    plain, low = (
        Autoencoder(ConvNetwork(2, [1, 2], KL().channels_in, width=8, blocks=1), KL(initial_logvar=v))
        for v in (0.0, -6.0)
    )
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    for model, want in ((plain, 0), (low, -6)):
        mean, logvar = model.moments(image).chunk(2, 1)
        assert logvar.mean().item() == pytest.approx(want, abs=1)
        assert mean.mean().item() == pytest.approx(0, abs=1)


def test_kl_clamps_the_log_variance():
    h = torch.cat([torch.zeros(1, 1, 1, 2), torch.tensor([[[[-99.0, 99.0]]]])], 1)
    torch.testing.assert_close(KL().posterior(h).variance_BCHW.flatten(), torch.tensor([-30.0, 20.0]).exp())


def naive(h_MC, code_KC):
    return (h_MC[:, None] - code_KC).square().sum(-1).argmin(1)


@pytest.mark.parametrize(("rows", "codes", "c"), [(1000, 64, 3), (37, 8192, 4), (5000, 5, 8)])
def test_search_finds_the_same_codes_as_the_distance_matrix(monkeypatch, rows, codes, c):
    monkeypatch.setattr(vq_module, "BLOCK_ELEMENTS", 1 << 14)  # several blocks
    h, code = normal(rows, c), normal(codes, c)
    assert torch.equal(nearest(h, code), naive(h, code))
    found, best = nearest(h.float(), code.float()), naive(h, code)
    distance = (h - code[found]).square().sum(1) - (h - code[best]).square().sum(1)
    assert distance.max() < 1e-5  # in float32 only codes equally near to rounding may differ


def test_search_memory_does_not_grow_with_the_batch(monkeypatch):
    largest = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: largest.append(r := addmm(*a, **k)) or r)
    code = torch.randn(16384, 4)
    for rows in (1000, 2000):
        nearest(torch.randn(rows, 4), code)
    assert max(r.numel() for r in largest) <= vq_module.BLOCK_ELEMENTS
    assert sum(len(r) for r in largest) == 3000


@pytest.mark.parametrize("legacy", [True, False])
def test_vq_loss_gradients_and_straight_through(legacy):
    torch.manual_seed(0)
    vq = VQ(4, 6, beta=0.25, legacy=legacy, weight=2.0).double()
    h = normal(2, 4, 3, 3).requires_grad_()
    z, loss, _ = vq(h)
    q = vq.project(h).detach()
    torch.testing.assert_close(z, q)
    # both terms have the value ‖q − h‖² / n and differ in whom they pull
    mse = (q - h).square().mean()
    torch.testing.assert_close(loss, 2.0 * 1.25 * mse)
    codebook, commitment = (0.25, 1.0) if legacy else (1.0, 0.25)
    grad_h, grad_e = torch.autograd.grad(loss, (h, vq.embedding.weight))
    torch.testing.assert_close(grad_h, 2.0 * commitment * 2 * (h - q).detach() / h.numel())
    index = vq.indices(h).flatten()
    pulls = 2.0 * codebook * 2 * (q - h).detach().permute(0, 2, 3, 1).reshape(-1, 4) / h.numel()
    torch.testing.assert_close(grad_e, torch.zeros_like(grad_e).index_add(0, index, pulls))
    cotangent = normal(2, 4, 3, 3)
    torch.testing.assert_close(torch.autograd.grad(vq(h).z_BCHW, h, cotangent)[0], cotangent)


def test_vq_statistics_and_initialisation():
    vq = VQ(2, 8)
    assert vq.embedding.weight.abs().max() <= 1 / 8
    with torch.no_grad():
        vq.embedding.weight.copy_(torch.arange(8.0)[:, None].expand(8, 2))
    h = torch.tensor([0.0, 0.1, 3.0, 2.9]).view(1, 1, 2, 2).expand(1, 2, 2, 2)
    stats = vq(h).stats
    assert stats["codebook_usage"] == 0.25 and stats["perplexity"] == pytest.approx(2.0)


def test_vq_searches_in_float32_under_autocast():
    vq = VQ(4, 512)
    nn.init.normal_(vq.embedding.weight)
    h = torch.randn(1, 4, 16, 16)
    want = vq.indices(h)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vq.indices(h), want)


@pytest.mark.slow  # importing diffusers takes seconds
@pytest.mark.parametrize("legacy", [True, False])
def test_vq_equals_diffusers(legacy):
    module = pytest.importorskip("diffusers.models.autoencoders.vae")
    theirs = module.VectorQuantizer(32, 4, beta=0.25, legacy=legacy)
    ours = VQ(4, 32, legacy=legacy)
    ours.embedding.weight.data.copy_(theirs.embedding.weight)
    h_ours = (torch.randn(2, 4, 5, 5) / 32).requires_grad_()
    h_theirs = h_ours.detach().clone().requires_grad_()
    z, loss, _ = ours(h_ours)
    q, their_loss, (_, _, index) = theirs(h_theirs)
    torch.testing.assert_close(z, q)
    torch.testing.assert_close(loss, their_loss)
    assert torch.equal(ours.indices(h_ours).flatten(), index)
    (z.square().sum() + loss).backward()
    (q.square().sum() + their_loss).backward()
    torch.testing.assert_close(h_ours.grad, h_theirs.grad)
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.embedding.weight.grad)


def test_none_passes_through():
    h = torch.randn(1, 3, 4, 4)
    z, loss, stats = NoRegulariser()(h, None)
    assert z is h and loss == 0 and stats == {}


def test_impossible_options():
    for make in (lambda: KL(-1.0), lambda: KL(initial_logvar=-40.0), lambda: VQ(4, 1), lambda: VQ(4, 8, beta=-0.1)):
        with pytest.raises(ConfigError, match=r"ae\.regulariser\."):
            make()
