"""Rate and distortion of codecs that need no training."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ldmlab.data.batches import to_float
from ldmlab.metrics import codecs


def smooth_pictures(n: int, side: int = 32) -> np.ndarray:
    """uint8 NHWC: random fields with most of their power in low frequencies, like photographs."""
    rng = np.random.default_rng(0)
    rings = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")) * side
    power = rng.standard_normal((n, 3, *rings.shape)) + 1j * rng.standard_normal((n, 3, *rings.shape))
    field = np.fft.irfft2(power / (1 + rings) ** 1.5, s=(side, side))
    field = field[:, :1] + 0.1 * field  # little colour, as in photographs
    field = field / field.std() * 50 + 128
    return np.clip(field, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def curves() -> dict[str, list[codecs.CodecPoint]]:
    image = smooth_pictures(24)
    return codecs.codec_curves(image[:8], [to_float(torch.from_numpy(image[8:]))])


def test_more_bits_less_loss(curves):
    """WebP's lowest qualities may coincide; otherwise rate and PSNR rise together."""
    assert set(curves) == {"JPEG", "WebP", "PCA, rounded"}
    for points in curves.values():
        bits, psnr = [p.bits_per_pixel for p in points], [p.psnr for p in points]
        assert all(b <= a + 1e-9 for b, a in pairwise(bits)), bits
        assert all(b <= a + 0.05 for b, a in pairwise(psnr)), psnr
        assert bits[-1] > 4 * bits[0] and psnr[-1] > psnr[0] + 8


def test_the_scan_is_what_differs_between_two_pictures_of_equal_headers():
    """Headers and tables depend on size and quality alone: file less scan is the same number for any picture."""
    rest = set()
    for image_HWC in smooth_pictures(4):
        data, size = codecs._jpeg(Image.fromarray(image_HWC), 50)
        rest.add(len(data) - size)
        assert size > 50
        broken = (
            data[: len(data) - 2 - size] + bytes(size) + data[-2:]
        )  # the scan alone, zeroed: still the same headers
        assert Image.open(io.BytesIO(broken)).size == (32, 32)
    assert len(rest) == 1


def test_a_fine_step_costs_the_entropy_of_its_cells(curves):
    """High-rate theory: half the step costs one bit a coefficient (three a pixel) and gains 6.02 dB, 8-bit rounding aside."""
    image = smooth_pictures(24)
    fine = codecs.rounded_components(image[:8], [to_float(torch.from_numpy(image[8:]))])
    a, b = fine[-2], fine[-1]
    assert b.bits_per_pixel - a.bits_per_pixel == pytest.approx(3, abs=1.2)
    assert 3 < b.psnr - a.psnr < 6.1


def test_without_rounding_the_components_give_the_image_back(monkeypatch):
    monkeypatch.setattr(codecs, "STEPS", (1e-4,))
    image = smooth_pictures(12)
    (point,) = codecs.rounded_components(image[:2], [to_float(torch.from_numpy(image[2:]))])
    assert point.psnr > 70
