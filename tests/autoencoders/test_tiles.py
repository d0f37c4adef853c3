"""Tiles: exact for local functions, a partition of unity, bounded memory, small error on a real network."""

import pytest
import torch
from torch.nn import functional as F

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.tiles import starts, tiled
from ldmlab.errors import ConfigError


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 80), (100, 37), (33, 200)])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 8), (32, 16), (24, 3)])
def test_a_local_function_comes_out_unchanged(height: int, width: int, tile: int, overlap: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tiled(lambda part: 2 * part + 1, x, tile, overlap, 1), 2 * x + 1)


def test_change_of_size_both_ways() -> None:
    x = torch.randn(1, 2, 48, 80, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tiled(lambda part: F.avg_pool2d(part, 4), x, 32, 8, 1 / 4), F.avg_pool2d(x, 4))
    up = tiled(lambda part: F.interpolate(part, scale_factor=4.0, mode="nearest"), x, 16, 4, 4)
    torch.testing.assert_close(up, F.interpolate(x, scale_factor=4.0, mode="nearest"))


def test_every_call_sees_one_tile_at_most() -> None:
    seen: list[tuple[int, ...]] = []
    x = torch.zeros(1, 1, 200, 130)
    tiled(lambda part: (seen.append(tuple(part.shape[2:])), part)[1], x, 64, 16, 1)
    assert max(max(s) for s in seen) <= 64 and len(seen) == len(starts(200, 64, 16)) * len(starts(130, 64, 16))


def test_impossible_tiles() -> None:
    x = torch.zeros(1, 1, 64, 64)
    for tile, overlap, factor in ((32, 0, 1), (32, 20, 1), (30, 8, 1 / 4), (32, 6, 1 / 4)):
        with pytest.raises(ConfigError, match="overlap"):
            tiled(lambda part: part, x, tile, overlap, factor)


def test_a_first_stage_errs_less_with_larger_tiles_and_not_at_all_with_one() -> None:
    torch.manual_seed(0)
    ae = Autoencoder(ConvNetwork(3, [1, 2], KL().channels_in, width=16, blocks=1, middle_attention=False), KL()).eval()
    image = F.interpolate(torch.rand(1, 3, 16, 16) * 2 - 1, size=(128, 128), mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        whole, errors = ae.decode(ae.encode(image)), []
        for tile in (32, 64, 96, 128):
            ae.tile = tile
            errors.append(float((ae.decode(ae.encode(image)) - whole).square().mean() / whole.var()))
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.1 and errors[-1] == 0, errors
