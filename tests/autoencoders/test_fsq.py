"""FSQ against the paper's definition, its published codebook sizes and vector-quantize-pytorch."""

import pytest
import torch

from ldmlab.autoencoders.regularisers.fsq import FSQ
from ldmlab.errors import ConfigError


def moments(c: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(2, c, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("levels", "codes"), [([8, 6, 5], 240), ([8, 5, 5, 5], 1000), ([7, 5, 5, 5, 5], 4375)])
def test_equals_vector_quantize_pytorch(levels, codes):
    reference = pytest.importorskip("vector_quantize_pytorch").FSQ(levels)
    fsq, h = FSQ(len(levels), levels), moments(len(levels))
    z, loss, _ = fsq(h, None)
    want_z, want_index = reference(h)
    assert fsq.codes == codes == reference.codebook_size and loss == 0
    torch.testing.assert_close(z, want_z, rtol=0, atol=1e-6)
    assert torch.equal(fsq.indices(z), want_index.long())


def test_every_level_is_reached_and_is_a_fixed_point():
    fsq = FSQ(2, [4, 5])
    h = torch.linspace(-9, 9, 400).view(1, 1, 20, 20).repeat(1, 2, 1, 1)
    z, _, _ = fsq(h, None)
    assert [len(z[:, i].round(decimals=5).unique()) for i in range(2)] == [4, 5]
    assert torch.equal(fsq.project(z), z) and z.abs().max() <= 1
    assert fsq.counts(h).sum() == 400


def test_the_decoder_rounds_what_diffusion_made():
    fsq = FSQ(2, [5, 5])  # levels −1, −½, 0, ½, 1
    z = torch.tensor([[-1.7, -0.6, 0.2, 0.26, 3.0]]).view(1, 1, 1, 5).repeat(1, 2, 1, 1)
    assert fsq.project(z)[0, 0, 0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_gradient_is_that_of_the_squashing():
    fsq, h = FSQ(3, [8, 6, 5]), moments(3).requires_grad_()
    (got,) = torch.autograd.grad(fsq(h, None).z_BCHW.sum(), h)
    (want,) = torch.autograd.grad(fsq.sample(h).sum(), h)
    assert torch.equal(got, want) and (got > 0).any()


@pytest.mark.parametrize(("zero", "least"), [("level", 0), ("border", 250)])
def test_two_levels_need_zero_between_them(zero, least):
    """Of 1 024 standard normal numbers a channel, as a whitened linear start gives them, the paper's shift sends all to one level."""
    h = moments(4, 1.0).repeat(1, 1, 2, 4)
    levels = [2, 2, 4, 4]
    counts = FSQ(4, levels, zero).counts(h)
    assert counts.sum() == 1024
    first, second = (counts.view(4, 4, 2, 2).sum((0, 1, 2 + i)).tolist() for i in (0, 1))
    assert (min(first) > least and min(second) > least) == (zero == "border") and (zero == "border" or min(first) == 0)


def test_zero_at_the_border_is_the_middle_of_even_levels():
    fsq = FSQ(3, [2, 4, 5], "border")
    assert fsq.sample(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [-0.5, -0.25, 0.0]
    h = torch.linspace(-9, 9, 400).view(1, 1, 20, 20).repeat(1, 3, 1, 1)
    assert [len(fsq(h)[0][:, i].round(decimals=5).unique()) for i in range(3)] == [2, 4, 5]


def test_one_number_a_channel():
    with pytest.raises(ConfigError, match=r"levels=\[8, 5, 5, 5\] names 4 channels, but ae.network.c=3"):
        FSQ(3, [8, 5, 5, 5])
    with pytest.raises(ConfigError, match="at least 2"):
        FSQ(2, [1, 5])
