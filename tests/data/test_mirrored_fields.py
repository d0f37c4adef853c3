"""A mirror image takes its fields along: what training sees of an image and of its condition are of the same side."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmlab.data.base import to_batch
from ldmlab.data.batches import Batches, to_uint8
from ldmlab.data.fields import (
    Crop,
    Field,
    boxes,
    cropped_boxes,
    cropped_map,
    float_map,
    mirror_some,
    mirrored_boxes,
    mirrored_map,
    swapped_sides,
    text,
    unchanged,
)
from ldmlab.data.shapes import FIELDS, Shapes, shrink
from ldmlab.errors import ConfigError

SEED, N = 3, 24


def trained_on(dataset: Any) -> tuple[dict[str, Any], list[int], Tensor]:
    """One batch as training sees it, the images it is of, and which of them it mirrored."""
    batches = Batches(dataset, N, N, SEED, torch.device("cpu"))
    batch = batches.step(0)[0]
    indices = [batches.order[n] for n in range(N)]
    mirror_N = batches.draws.rand("flip", torch.arange(N), (), "cpu") < 0.5
    assert 4 < int(mirror_N.sum()) < N - 4
    return batch, indices, mirror_N


@pytest.fixture(scope="module")
def shapes() -> tuple[dict[str, Any], dict[str, Any], Tensor]:
    """A batch with every field of data=shapes and flip=true, the same examples as they are, and which are mirrored."""
    dataset = Shapes(32, train_images=60, fields=list(FIELDS), cached=False, flip=True)
    batch, indices, mirror_N = trained_on(dataset)
    return batch, to_batch(dataset.__getitems__(indices)), mirror_N


def test_the_image_is_mirrored_by_that_draw(shapes: Any) -> None:
    seen, plain, mirror_N = shapes
    for i, mirrored in enumerate(mirror_N):
        image = plain["image"][i].flip(1) if mirrored else plain["image"][i]
        assert torch.equal(to_uint8(seen["image"])[i], image)


@pytest.mark.parametrize("field", ["segmentation", "mask", "depth", "low_res"])
def test_maps_are_mirrored_with_their_image(shapes: Any, field: str) -> None:
    seen, plain, mirror_N = shapes
    for i, mirrored in enumerate(mirror_N):
        assert torch.equal(seen[field][i], plain[field][i].flip(1) if mirrored else plain[field][i])
    assert seen[field].dtype == plain[field].dtype and not torch.equal(seen[field], plain[field])


def test_the_low_resolution_is_that_of_the_mirrored_image(shapes: Any) -> None:
    """An oracle of its own: the box average of what the network sees."""
    seen, _, _ = shapes
    for image, low in zip(to_uint8(seen["image"]), seen["low_res"], strict=True):
        assert np.array_equal(shrink(image.numpy(), 4), low.numpy())


def test_boxes_hold_the_labelled_object_of_the_mirrored_mask(shapes: Any) -> None:
    """An oracle of its own: the box of object 0 is the extent of the mask, on the side where the mask is now."""
    seen, plain, mirror_N = shapes
    checked = 0
    for mask, box in zip(seen["mask"].numpy(), seen["boxes"].numpy()[:, 0], strict=True):
        ys, xs = np.nonzero(mask)
        if len(ys):
            assert box[1:].tolist() == [xs.min() / 32, ys.min() / 32, (xs.max() + 1) / 32, (ys.max() + 1) / 32]
            checked += 1
    assert checked > N // 2
    for i, mirrored in enumerate(mirror_N):
        x0, x1 = plain["boxes"][i, 0, 1], plain["boxes"][i, 0, 3]
        if mirrored and x0 >= 0:
            assert seen["boxes"][i, 0, [1, 3]].tolist() == [float(1 - x1), float(1 - x0)]
    absent = plain["boxes"][:, :, 0] == -1
    assert absent.any() and (seen["boxes"][absent] == -1).all()
    assert torch.equal(seen["boxes"][:, :, 0], plain["boxes"][:, :, 0])


def test_labels_and_captions_without_sides_stay(shapes: Any) -> None:
    seen, plain, _ = shapes
    assert torch.equal(seen["label"], plain["label"]) and seen["caption"] == plain["caption"]


class Sided:
    """Shapes with one more field, which says where it looks."""

    fields = ("label", "gaze")

    def __init__(self, declared: tuple[Field, ...], flip: bool = True):
        self.shapes = Shapes(16, train_images=40, cached=False)
        self.declared, self.flip = (*self.shapes.declared, *declared), flip

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        samples = self.shapes.__getitems__(indices)
        return [{**sample, "gaze": f"{i} looks left"} for i, sample in zip(indices, samples, strict=True)]


def test_a_caption_with_sides_is_told_of_the_mirror_image() -> None:
    batch, indices, mirror_N = trained_on(Sided((text("gaze"),)))
    sides = ["right" if mirrored else "left" for mirrored in mirror_N]
    assert batch["gaze"] == [f"{i} looks {side}" for i, side in zip(indices, sides, strict=True)]


def test_a_field_that_declares_nothing_or_refuses_stops_flipping() -> None:
    with pytest.raises(ConfigError, match=r"data\.flip=true mirrors images, and the field 'gaze'.*does not declare"):
        trained_on(Sided(()))
    with pytest.raises(ConfigError, match=r"'gaze' of this data set has no right value.*data\.flip=false"):
        trained_on(Sided((Field("gaze", "text", None, unchanged),)))
    Batches(Sided((), flip=False), 8, 8, 0, torch.device("cpu")).step(0)


def test_sides_are_swapped_by_words_in_their_case() -> None:
    texts = ["Left of the LEFTMOST cat, a right-hand glove", "a rightward leftover, outright bright", "nothing"]
    swapped = ["Right of the RIGHTMOST cat, a left-hand glove", "a leftward leftover, outright bright", "nothing"]
    assert swapped_sides(texts) == swapped and swapped_sides(swapped) == texts


def test_a_mirror_image_twice_is_the_image() -> None:
    map_BHWC = torch.rand(3, 4, 6, 2)
    boxes_BK5 = torch.tensor([[[2, 0.25, 0.0, 0.5, 1.0], [-1, -1, -1, -1, -1]]])
    assert torch.equal(mirrored_map(mirrored_map(map_BHWC)), map_BHWC)
    assert torch.equal(mirrored_boxes(mirrored_boxes(boxes_BK5)), boxes_BK5)
    assert mirrored_boxes(boxes_BK5)[0, 0].tolist() == [2, 0.5, 0.0, 0.75, 1.0]


def test_a_crop_moves_boxes_as_it_cuts_maps() -> None:
    """The box of the cut mask is the cut box; a box outside is no box."""
    mask = torch.zeros(1, 16, 16)
    mask[0, 4:10, 2:12] = 1
    box = torch.tensor([[[7, 2 / 16, 4 / 16, 12 / 16, 10 / 16], [3, 0, 0, 2 / 16, 2 / 16], [-1, -1, -1, -1, -1]]])
    crop = Crop(left=0.25, top=0.25, side=0.5)
    small, moved = cropped_map(mask, crop), cropped_boxes(box, crop)
    ys, xs = np.nonzero(small[0].numpy())
    assert small.shape == (1, 8, 8)
    assert moved[0, 0].tolist() == [7, xs.min() / 8, ys.min() / 8, (xs.max() + 1) / 8, (ys.max() + 1) / 8]
    assert (moved[0, 1:] == -1).all()
    with pytest.raises(ValueError, match="cuts through the pixels"):
        cropped_map(mask, Crop(0.03, 0, 0.5))


def test_each_example_has_its_own_mirror() -> None:
    declared = (float_map("depth"), boxes("boxes", 3))
    batch = {"depth": torch.arange(8.0).view(2, 1, 4), "boxes": torch.tensor([[[1, 0, 0, 0.25, 1.0]]] * 2), "other": 1}
    found = mirror_some(batch, declared, torch.tensor([False, True]))
    assert set(found) == {"depth", "boxes"}
    assert found["depth"][:, 0].tolist() == [[0, 1, 2, 3], [7, 6, 5, 4]]
    assert found["boxes"][:, 0, 1].tolist() == [0, 0.75]
