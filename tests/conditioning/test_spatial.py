"""Maps, small images and holes as conditions: their numbers, their null, and that what is drawn at random is the position's own."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldmlab.conditioning.compose import Compose, completed, pictured
from ldmlab.conditioning.concat_map import ConcatMap
from ldmlab.conditioning.inpaint import Inpaint
from ldmlab.conditioning.low_resolution import LowResolution
from ldmlab.conditioning.source import GivenCondition, HeldOut
from ldmlab.conditioning.spatial_rescaler import SpatialRescaler
from ldmlab.data.batches import to_uint8
from ldmlab.data.degradations import DEGRADATIONS
from ldmlab.data.masks import KINDS, mask_at, masks
from ldmlab.data.shapes import Shapes
from ldmlab.errors import ConfigError

CPU = torch.device("cpu")


def batch(n: int = 4, side: int = 32, first: int = 0) -> dict[str, Any]:
    data = Shapes(side, "val", val_images=16, fields=["segmentation", "depth"], cached=False)
    return HeldOut(data, ("image", "position", "segmentation", "depth"), 0).batch(list(range(first, first + n)))


def concat(cond: Any) -> Tensor:
    assert cond.concat_BCHW is not None
    return cond.concat_BCHW


# ---- semantic maps -------------------------------------------------------------------------------------------------------


def test_the_rescaler_maps_the_share_of_each_class() -> None:
    """Two bilinear halvings average 4x4 pixels: with the identity as its convolution it is the map of shares."""
    net = SpatialRescaler((3, 8, 8), 32, {"segmentation": 11}, channels=11)
    assert list(net.state_dict()) == ["channel_mapper.weight"]  # the official name
    net.channel_mapper.weight.data = torch.eye(11)[:, :, None, None]
    shares = ConcatMap("segmentation", (3, 8, 8), {"segmentation": 11})
    torch.testing.assert_close(concat(net(batch())), concat(shares(batch())))


def test_the_rescaler_s_null_is_no_class_anywhere() -> None:
    net = SpatialRescaler((3, 8, 8), 32, {"segmentation": 11})
    assert net.concat_channels == 3 and net.needs == ("segmentation",)
    nowhere = net.channel_mapper(torch.zeros(2, 11, 8, 8))
    assert torch.equal(concat(net.null(2, (8, 8), CPU)), nowhere)
    with pytest.raises(ConfigError, match=r"cond\.conditioner\.field=depth.*no class numbers"):
        SpatialRescaler((3, 8, 8), 32, {"depth": None}, field="depth")


# ---- super-resolution ----------------------------------------------------------------------------------------------------


def test_bicubic_is_pillow_s() -> None:
    found = to_uint8(LowResolution((3, 8, 8), 32).small(batch()))
    for small, image in zip(found.numpy(), to_uint8(batch()["image"]).numpy(), strict=True):
        wanted = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(small.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("name", list(DEGRADATIONS))
def test_a_degradation_is_the_position_s_own(name: str) -> None:
    """At any batch size; bsr_light anew at each visit, bicubic never."""
    image, degrade = batch()["image"], DEGRADATIONS[name]
    whole = degrade(image, torch.arange(4), 4)
    assert whole.shape == (4, 3, 8, 8) and whole.min() >= -1 and whole.max() <= 1
    for i in range(4):
        assert torch.equal(degrade(image[i : i + 1], torch.tensor([i]), 4), whole[i : i + 1])
    levels = (whole + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert torch.equal(degrade(image, torch.arange(4) + 4, 4), whole) == (name == "bicubic")


def test_bsr_light_keeps_brightness_and_loses_detail() -> None:
    image = batch(16, 64)["image"]
    soft, sharp = (DEGRADATIONS[name](image, torch.arange(16), 4) for name in ("bsr_light", "bicubic"))
    assert (soft.mean(dim=(1, 2, 3)) - sharp.mean(dim=(1, 2, 3))).abs().max() < 0.1
    detail = [x.diff(dim=3).abs().mean() for x in (soft, sharp)]
    assert detail[0] < detail[1] and (soft - sharp).abs().mean() > 0.03


def test_low_resolution_at_the_latent_s_size() -> None:
    net = LowResolution((3, 8, 8), 32)
    assert torch.equal(concat(net(batch())), net.small(batch()))  # f = 4: as it is
    assert concat(LowResolution((3, 16, 16), 32)(batch())).shape == (4, 3, 16, 16)
    assert not concat(net.null(2, (8, 8), CPU)).any()
    seen = pictured(Compose([net]), batch())
    assert seen is not None and seen.shape == (4, 8, 8, 3) and seen.dtype == torch.uint8
    with pytest.raises(ConfigError, match=r"factor=5 does not divide data\.resolution=32"):
        LowResolution((3, 8, 8), 32, factor=5)


# ---- inpainting ----------------------------------------------------------------------------------------------------------


def patches(image_BCHW: Tensor) -> Tensor:
    """A first stage: means over 4x4 pixels."""
    return torch.nn.functional.avg_pool2d(image_BCHW, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [16, 64])
def test_masks_hide_something_and_at_most_half(kind: Any, side: int) -> None:
    found = masks([kind], torch.arange(40), side)
    share = found.mean(dim=(1, 2, 3))
    assert found.shape == (40, 1, side, side) and set(found.unique().tolist()) == {0.0, 1.0}
    assert share.min() > 0 and share.max() <= 0.5 and share.std() > 0.01
    assert np.array_equal(mask_at([kind], 7, side), found[7, 0].numpy())
    if kind == "box":
        for mask in found[:, 0].numpy():
            ys, xs = np.nonzero(mask)
            assert mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()  # one full rectangle
        assert share.min() > 0.05 and share.max() < 0.4


def test_thin_masks_are_thinner_than_thick_ones() -> None:
    """Most of a thin stroke is gone after two erosions, most of a thick one is not."""
    from scipy.ndimage import binary_erosion

    left = {
        kind: np.mean([binary_erosion(m, iterations=3).sum() / m.sum() for m in masks([kind], torch.arange(30), 128)[:, 0].numpy()])
        for kind in ("thin", "medium", "thick")
    }  # fmt: skip
    assert left["thin"] < 0.2 < left["medium"] < left["thick"]


def test_inpaint_shows_the_masked_latent_and_the_mask() -> None:
    net = Inpaint((3, 8, 8), 32, patches, ["box"])
    given = batch()
    mask = masks(["box"], given["position"], 32)
    found = concat(net(given))
    assert found.shape == (4, 4, 8, 8) == (4, net.concat_channels, 8, 8)
    black = given["image"].clone()
    black[(mask > 0).expand_as(black)] = -1
    assert torch.equal(found[:, :3], patches(black)) and set(found[:, 3].unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(found[:, 3:] > 0, mask[:, :, 2::4, 2::4] > 0) or torch.equal(
        found[:, 3:] > 0, mask[:, :, ::4, ::4] > 0
    )
    assert not torch.equal(
        concat(net({**given, "position": given["position"] + 4})), found
    )  # another visit, another hole


def test_inpaint_s_null_is_one_hole() -> None:
    net = Inpaint((3, 8, 8), 32, patches, ["box"])
    null = concat(net.null(2, (8, 8), CPU))
    assert torch.equal(null[:, :3], torch.full((2, 3, 8, 8), -1.0)) and torch.equal(null[:, 3], torch.ones(2, 8, 8))
    larger = concat(net.null(1, (16, 16), CPU))
    assert larger.shape == (1, 4, 16, 16)
    assert concat(Inpaint((3, 8, 8), 32, None)(batch())).shape == (4, 4, 8, 8)  # in plans there is no first stage


def test_known_pixels_are_kept() -> None:
    net, given = Inpaint((3, 8, 8), 32, patches), batch()
    hole = net.mask(given).expand(-1, 3, -1, -1) > 0
    drawn = torch.rand(4, 3, 32, 32)
    found = completed(Compose([net]), drawn, given)
    assert torch.equal(found[hole], drawn[hole]) and torch.equal(found[~hole], given["image"][~hole])
    assert completed(Compose([]), drawn, given) is drawn
    seen = pictured(net, given)
    assert (
        seen is not None
        and (seen[~hole.permute(0, 2, 3, 1)] == to_uint8(given["image"])[~hole.permute(0, 2, 3, 1)]).all()
    )


# ---- positions -----------------------------------------------------------------------------------------------------------


def test_the_position_of_a_sample_is_its_number() -> None:
    data = Shapes(32, "val", val_images=3, fields=["label"], cached=False)
    source = HeldOut(data, ("image", "position"), 0)
    assert source.batch([5, 2])["position"].tolist() == [5, 2]  # type: ignore[union-attr]
    assert source.describe(0).startswith("example ") and source.record(2)["fields"] == ["image", "position"]
    assert torch.equal(
        source.images([5]), source.images([2])
    )  # three examples: number 5 is number 2 at its second visit
    given = GivenCondition({"image": data[0]["image"]}, ("image", "position"), data)
    assert given.batch([4, 9])["position"].tolist() == [4, 9] and "position" not in given.record(2)  # type: ignore[union-attr]
