"""The order of training is a pure function of (seed, images seen); every split of the work sees the same images with the same flips."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from ldmlab.data.batches import Batches, Order, to_float, to_uint8
from ldmlab.data.fields import Field, label


class Numbers:
    """Image i is filled with i, its left half brighter by 100, so that a flip shows."""

    resolution, flip, fields, class_names = 4, True, ("label",), ("a", "b")
    declared: ClassVar[tuple[Field, ...]] = (label(2),)

    def __init__(self, n: int, flip: bool = True):
        self.n, self.flip = n, flip

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices: list[int]) -> list[dict]:
        samples = []
        for i in indices:
            image = np.full((4, 4, 3), i, np.uint8)
            image[:, :2] += 100
            samples.append({"image": image, "label": i % 2})
        return samples


def seen(batches: Batches, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    micros = batches.step(images)
    return tuple(torch.cat([m[k] for m in micros]) for k in ("image", "label", "position"))  # type: ignore[return-value]


def test_each_epoch_is_another_permutation() -> None:
    order = Order(10, seed=3)
    epochs = [[order[n] for n in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = Order(10, seed=3)
    assert [again[n] for n in (25, 3, 14)] == [epochs[2][5], epochs[0][3], epochs[1][4]]  # in any order of asking


@pytest.mark.parametrize("ranks,micro", [(1, 3), (2, 6), (2, 3), (4, 1)])
def test_ranks_and_micro_batches_cut_the_same_step(ranks: int, micro: int) -> None:
    whole = Batches(Numbers(29), 12, 12, 7, torch.device("cpu"))
    cut = [Batches(Numbers(29), 12, micro, 7, torch.device("cpu"), rank, ranks) for rank in range(ranks)]
    for images in (0, 12, 24, 36):  # crosses the border of an epoch
        expected = seen(whole, images)
        found = [torch.cat(parts) for parts in zip(*(seen(b, images) for b in cut), strict=True)]
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_at_the_exact_image(workers: int) -> None:
    straight = Batches(Numbers(29), 12, 6, 7, torch.device("cpu"), workers=workers)
    steps = {images: seen(straight, images) for images in range(0, 60, 12)}
    resumed = Batches(Numbers(29), 12, 6, 7, torch.device("cpu"), workers=0)
    for images in (36, 48):
        for a, b in zip(steps[images], seen(resumed, images), strict=True):
            assert torch.equal(a, b)


def test_flips_half_of_the_images_and_only_when_told() -> None:
    image_BCHW, _, _ = seen(Batches(Numbers(100), 400, 400, 1, torch.device("cpu")), 0)
    flipped = (image_BCHW[:, 0, 0, 0] < image_BCHW[:, 0, 0, 3]).float().mean()
    assert 0.4 < flipped < 0.6
    image_BCHW, _, _ = seen(Batches(Numbers(100, flip=False), 400, 400, 1, torch.device("cpu")), 0)
    assert (image_BCHW[:, 0, 0, 0] > image_BCHW[:, 0, 0, 3]).all()


def test_moments_choose_the_mirror_by_the_same_draw() -> None:
    class Moments(Numbers):
        def __getitems__(self, indices: list[int]) -> dict:  # type: ignore[override]
            index = torch.tensor(indices, dtype=torch.float16)
            return {"moments": torch.stack([index, -index], 1)[:, :, None, None, None].expand(-1, 2, 1, 2, 2)}

    images = Batches(Numbers(29), 12, 12, 7, torch.device("cpu")).step(24)[0]["image"]
    moments = Batches(Moments(29), 12, 12, 7, torch.device("cpu")).step(24)[0]["moments"]
    flipped = images[:, 0, 0, 0] < images[:, 0, 0, 3]
    assert moments.dtype == torch.float32
    assert torch.equal(moments[:, 0, 0, 0] <= 0, flipped | (moments[:, 0, 0, 0] == 0))


def test_eight_bits_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_uint8(torch.tensor([[[[-3.0, 3.0]]]]).expand(1, 3, 1, 2))[0, 0, :, 0].tolist() == [0, 255]


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="does not split"):
        Batches(Numbers(9), 10, 3, 0, torch.device("cpu"))
