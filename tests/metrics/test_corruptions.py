"""Corruptions: closed forms, doses that grow, and images that are changed alike in any batch."""

import itertools
import math

import numpy as np
import pytest
import torch

from ldmlab.errors import ConfigError
from ldmlab.metrics.corruptions import CORRUPTIONS, LUMA, Corrupted, smooth, without_classes

N, SIDE = 40, 24
PATTERN = torch.randint(60, 190, (N, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def read(rows):
    return PATTERN[rows]


def flat(*colour):
    return lambda rows: torch.tensor(colour, dtype=torch.uint8).expand(len(rows), SIDE, SIDE, 3)


def change(name, dose, source=read, rows=range(N)):
    return Corrupted(source, N, name, dose)(list(rows))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_dose_changes_nothing_and_a_larger_one_changes_more(name):
    kind = CORRUPTIONS[name]
    assert torch.equal(change(name, kind.none), PATTERN)
    error = [(change(name, dose).double() - PATTERN.double()).square().mean().item() for dose in kind.doses]
    assert error[0] > 0 and all(a < b for a, b in itertools.pairwise(error))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_changed_alike_in_any_batch(name):
    dose = CORRUPTIONS[name].doses[-1]
    whole = change(name, dose)
    assert whole.dtype == torch.uint8 and whole.shape == PATTERN.shape
    alone = torch.cat([change(name, dose, rows=[row]) for row in range(N)])
    assert (whole.int() - alone.int()).abs().max() <= 1  # sums in another order may round to the neighbour


def test_contrast_keeps_the_mean_and_scales_distances():
    grey = PATTERN.double() @ torch.tensor(LUMA, dtype=torch.float64)
    found = change("contrast", 1.25).double()
    mean = grey.mean(dim=(1, 2))[:, None, None, None]
    assert (found - (mean + 1.25 * (PATTERN - mean))).abs().max() <= 0.51
    assert (change("flat", 0.0).double() - mean).abs().max() <= 0.51  # all contrast gone: the mean grey


def test_brightness_adds_a_share_of_the_range():
    assert torch.equal(change("brightness", 0.2).int(), PATTERN.int() + 51)
    assert change("brightness", 1.0).min() == 255


def test_saturation_keeps_grey_images_and_removes_all_colour():
    assert torch.equal(change("saturation", 0.3, flat(90, 90, 90)), flat(90, 90, 90)(range(N)))
    found = change("saturation", 0.0, flat(200, 100, 50))
    assert (found == round(200 * LUMA[0] + 100 * LUMA[1] + 50 * LUMA[2])).all()


def test_blur_of_a_wave_is_its_transfer_function():
    """A Gaussian takes exp(-2 π² f² σ²) of a cosine; a flat image stays."""
    assert torch.equal(change("blur", 2.0, flat(90, 120, 30)), flat(90, 120, 30)(range(N)))
    x = torch.cos(2 * math.pi * torch.arange(64) / 8)[None, None, None].expand(1, 1, 64, 64)
    for sigma in (0.7, 1.2):
        found = smooth(x, sigma)[0, 0, 32, 16:48]
        expected = x[0, 0, 32, 16:48] * math.exp(-2 * math.pi**2 * sigma**2 / 64)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_noise_has_its_standard_deviation():
    added = change("noise", 0.1, flat(128, 128, 128)).double() - 128
    assert added.std().item() == pytest.approx(0.1 * 127.5, rel=0.02) and abs(added.mean().item()) < 0.2


def test_texture_comes_from_the_other_image_and_shapes_stay():
    """Own coarse part, the other's fine part: the whole is what it should be, and a flat partner leaves the coarse part."""
    images = PATTERN.permute(0, 3, 1, 2).float()
    other = images.roll(-(N // 2), dims=0)
    expected = smooth(images, 2.0) + other - smooth(other, 2.0)
    found = change("texture", 1.0).permute(0, 3, 1, 2).float()
    assert (found - expected.clamp(0, 255)).abs().max() <= 0.51


def test_warp_moves_places_not_colours():
    assert torch.equal(change("warp", 4.0, flat(7, 90, 230)), flat(7, 90, 230)(range(N)))
    ramp = torch.arange(SIDE).mul(4).add(60).to(torch.uint8)[None, :, None, None].expand(N, SIDE, SIDE, 3)
    moved = (change("warp", 1.0, lambda rows: ramp[rows]).double() - ramp.double())[:, 6:-6, 6:-6, 0] / 4  # pixels
    assert 0.3 < moved.square().mean().sqrt().item() < 1.3
    twice = (change("warp", 2.0, lambda rows: ramp[rows]).double() - ramp.double())[:, 6:-6, 6:-6, 0] / 4
    assert (twice - 2 * moved).abs().max() < 0.6


def test_a_share_of_the_images_is_broken_and_more_beside_the_same():
    n = 2000
    source = lambda rows: torch.full((len(rows), 8, 8, 3), 90, dtype=torch.uint8)  # noqa: E731
    hit = {s: (Corrupted(source, n, "broken", s)(list(range(n))) != 90).flatten(1).any(dim=1) for s in (0.1, 0.4)}
    for share, found in hit.items():
        assert found.double().mean().item() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))
    assert (hit[0.4] | ~hit[0.1]).all()
    untouched = Corrupted(source, n, "broken", 0.4)(list(range(n)))[~hit[0.4]]
    assert (untouched == 90).all()


def test_missing_classes():
    label = np.arange(100) % 10
    left = [without_classes(label, share) for share in (0.0, 0.2, 0.5)]
    assert [len(set(label[rows])) for rows in left] == [10, 8, 5]
    assert set(left[2]) < set(left[1]) < set(left[0]) == set(range(100))
    for share in (1.0, 0.04, -0.1):
        with pytest.raises(ConfigError, match=r"multiple of 0\.1 below 1"):
            without_classes(label, share)


def test_refusals():
    with pytest.raises(ConfigError, match=r"no corruption 'blurr'. There are: contrast"):
        change("blurr", 1.0)
    with pytest.raises(ConfigError, match=r"dose of 'blur' is -1; it must be at least 0"):
        change("blur", -1.0)
    with pytest.raises(ConfigError, match=r"dose of 'texture' is 1\.5; it must be between 0 and 1"):
        change("texture", 1.5)
    with pytest.raises(ConfigError, match="nan"):
        change("noise", math.nan)
