"""PSNR, SSIM and perceptual distance: closed forms, torchmetrics and independence of batches."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ldmlab.errors import ConfigError
from ldmlab.metrics.reconstruction import ReconstructionError, highest_psnr, psnr, rounded, ssim


class MeanDistance(nn.Module):
    def forward(self, a, b):
        return (a - b).abs().mean(dim=(1, 2, 3))


def images(n, side=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, side, side, generator=g) * 2 - 1


def test_rounded_is_nearest_and_clamped():
    every = torch.arange(256, dtype=torch.float32)[None, None, None] / 127.5 - 1
    assert (rounded(every).flatten() == torch.arange(256)).all()
    assert rounded(torch.tensor([[[[-3.0, 3.0, 0.4999 / 127.5 - 1]]]])).flatten().tolist() == [0, 255, 0]


def test_psnr_closed_form_per_image():
    a = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    b = a.clone()
    b[0] += 5
    b[1] += 50
    expected = [20 * math.log10(255 / 5), 20 * math.log10(255 / 50)]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-12)
    one_off = a.clone()
    one_off[0, 0, 0, 0] = 1
    assert psnr(a, one_off)[0].item() == pytest.approx(highest_psnr(3, 16, 16))
    assert psnr(a, one_off)[1].isinf()


def test_ssim_against_torchmetrics_and_limits():
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    a, b = rounded(images(3, 32)), rounded(images(3, 32) * 0.8)
    oracle = StructuralSimilarityIndexMeasure(data_range=255.0, reduction="none")
    assert torch.equal(ssim(a, b), oracle(b.float(), a.float()))  # the same operations in the same order
    deep = rounded(images(2, 40), 16), rounded(images(2, 40) * 0.8, 16)
    oracle = StructuralSimilarityIndexMeasure(data_range=65535.0, reduction="none")
    assert torch.equal(ssim(*deep, bits=16), oracle(deep[1].float(), deep[0].float()))
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)
    assert ssim(a[:1, :, :16, :16], b[:1, :, :16, :16]).shape == (1,)
    with pytest.raises(ConfigError, match=r"data\.resolution=12"):
        ssim(a[:, :, :12, :12], b[:, :, :12, :12])


def test_streaming_does_not_depend_on_batches():
    image, recon = images(10), images(10) * 0.7
    whole, parts = ReconstructionError(MeanDistance()), ReconstructionError(MeanDistance())
    whole.update(image, recon)
    for rows in (slice(0, 1), slice(1, 7), slice(7, 10)):
        parts.update(image[rows], recon[rows])
    for name, score in whole.compute(50, 0).items():
        other = parts.compute(50, 0)[name]
        assert (other.value, other.low, other.high) == pytest.approx((score.value, score.low, score.high), rel=1e-6)
        assert score.low <= score.value <= score.high and score.n == 10
    assert list(whole.values()) == ["psnr", "ssim", "perceptual"]
    mean = psnr(rounded(image), rounded(recon)).mean().item()  # of images, not the PSNR of a pooled error
    assert whole.compute(50, 0)["psnr"].value == pytest.approx(mean, rel=1e-12)
    assert "Gaussian window of 11" in whole.compute(50, 0)["ssim"].method


def test_identical_images_stay_finite_and_are_told():
    image = images(4)
    scores = ReconstructionError()
    scores.update(image, torch.cat([image[:2], image[2:] * 0.9]))
    assert math.isfinite(scores.compute(20, 0)["psnr"].value)
    assert "2 of 4 reconstructions equal" in scores.warnings()[0]
    assert ReconstructionError().warnings() == []


def test_misuse():
    with pytest.raises(ValueError, match="no reconstruction"):
        ReconstructionError().compute(20, 0)
    with pytest.raises(ValueError, match="images"):
        ReconstructionError().update(images(2), images(3))
