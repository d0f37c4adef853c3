import pytest
import torch
from test_pca import fitted, pictures

from ldmlab.autoencoders.lapped import best_latents, lapped, least_squares, windowed
from ldmlab.autoencoders.pca import PCANetwork
from ldmlab.errors import ConfigError


def error(ae, image):
    return (ae(image).image_BCHW - image).square().mean().item()


@pytest.mark.parametrize("whiten", [True, False])
def test_reading_neighbours_loses_less_than_the_best_decoder_of_pca(whiten):
    image = pictures()
    alone, more = (fitted(4, 3, images=image, window=3, whiten=whiten, rounds=rounds) for rounds in (0, 6))
    assert error(more, image) < 0.99 * error(alone, image)
    z_CM = more.moments(image).transpose(0, 1).flatten(1)
    variance_C = z_CM.var(1, unbiased=False)
    ones = torch.ones(3)
    torch.testing.assert_close(variance_C if whiten else variance_C.mean() * ones, ones, atol=2e-2, rtol=0)


def test_least_squares_finds_the_convolution_that_made_the_data():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=generator) for s in ((70, 2, 6, 6), (4, 2, 3, 3), (4,)))
    found_weight, found_bias = least_squares(x, windowed(x, weight, bias), 3)
    torch.testing.assert_close(found_weight, weight, atol=2e-3, rtol=0)
    torch.testing.assert_close(found_bias, bias, atol=2e-3, rtol=0)


def test_best_latents_are_those_of_the_normal_equations():
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(5, 1, 3, 3, generator=generator).double(), torch.randn(5, generator=generator).double()
    target = torch.randn(2, 5, 2, 2, generator=generator).double()
    zero = torch.zeros(2, 1, 2, 2).double()
    basis = torch.eye(4).double().view(4, 1, 2, 2)
    matrix_ON = windowed(basis, weight, torch.zeros(5).double()).flatten(1).T
    want = torch.linalg.lstsq(matrix_ON, (target - bias.view(-1, 1, 1)).flatten(1).T).solution.T
    torch.testing.assert_close(best_latents(target, zero, weight, bias).flatten(1), want, atol=1e-6, rtol=0)


def test_same_coefficients_same_encoder():
    x = torch.randn(20, 6, 4, 4, generator=torch.Generator().manual_seed(2))
    one, two = (lapped(x, 2, 3, 2, True) for _ in range(2))
    assert torch.equal(one.context_CQWW, two.context_CQWW) and torch.equal(one.offset_C, two.offset_C)


def test_a_window_of_one_has_no_neighbours():
    with pytest.raises(ConfigError, match=r"ae\.network\.rounds=3 with ae\.network\.window=1"):
        PCANetwork(4, 3, lambda c: c, rounds=3)
