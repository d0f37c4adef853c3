"""Bits: closed forms of the KL and of the codes' entropy, per element and per pixel."""

import math

import numpy as np
import pytest
import torch

from ldmlab.metrics.intervals import Score
from ldmlab.metrics.rate import Rate, entropy_bits, kl_bits, plain


def value(x: object) -> float:
    assert isinstance(x, Score)
    return x.value


def test_kl_closed_forms() -> None:
    zeros = torch.zeros(2, 3, 4, 4)
    assert kl_bits(zeros, torch.ones_like(zeros)).tolist() == [0, 0]
    # KL(N(m, s²) ‖ N(0, 1)) = (m² + s² − 1 − ln s²) / 2 nats per element
    bits = kl_bits(torch.full_like(zeros, 2.0), torch.full_like(zeros, 0.25))
    expected = 48 * (4 + 0.25 - 1 - math.log(0.25)) / 2 / math.log(2)
    np.testing.assert_allclose(bits, expected, rtol=1e-12)


def test_kl_rate_per_element_and_per_pixel() -> None:
    rate = Rate(positions=16, elements=48, pixels=64)
    for mean in (1.0, 3.0):
        rate.add_posterior(torch.full((1, 3, 4, 4), mean), torch.ones(1, 3, 4, 4))
    found = rate.compute(20, 0)
    per_element = (1 + 9) / 2 / 2 / math.log(2)  # mean over the two images
    assert value(found["kl_bits"]) == pytest.approx(per_element)
    assert value(found["bits_per_pixel"]) == pytest.approx(per_element * 48 / 64)
    assert set(found) == {"kl_bits", "bits_per_pixel"}


def test_codebook_rate_nominal_and_entropy() -> None:
    """256 codes at f = 4: 8 bits per 16 pixels. Four codes equally often: 2 bits."""
    rate = Rate(positions=4, elements=12, pixels=64)
    counts = torch.zeros(256, dtype=torch.int64)
    counts[[3, 7, 100, 255]] = 1
    for _ in range(30):
        rate.add_codes(counts)
    found = rate.compute(100, 0)
    assert found["bits_per_pixel"] == pytest.approx(8 / 16)
    assert value(found["entropy_bits_per_pixel"]) == pytest.approx(2 / 16)
    assert value(found["codebook_perplexity"]) == pytest.approx(4) and value(found["codebook_usage"]) == 4 / 256
    for name in ("entropy_bits_per_pixel", "codebook_usage"):  # all images alike: nothing to be unsure of
        score = found[name]
        assert isinstance(score, Score) and score.high - score.low < 1e-12
    assert plain(found)["bits_per_pixel"] == 0.5 and plain(found)["codebook_usage"]["n"] == 30


def test_entropy_limits_and_repeated_codes() -> None:
    np.testing.assert_allclose(entropy_bits(np.array([[5.0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 0, 0]])), [0, 2, 1])
    rate = Rate(4, 4, 16)
    rate.add_codes(torch.tensor([3, 1]))  # a code that occurs three times in one image
    rate.add_codes(torch.tensor([1, 3]))
    assert value(rate.compute(20, 0)["codebook_perplexity"]) == pytest.approx(2)


def test_no_bits_for_a_plain_latent() -> None:
    assert Rate(1, 1, 1).compute(20, 0) == {}
