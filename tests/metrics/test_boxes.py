"""Box agreement: intersection over union by hand; the true class maps of the data agree with its boxes."""

import numpy as np
import pytest

from ldmlab.data.base import to_batch
from ldmlab.data.shapes import Shapes
from ldmlab.metrics.boxes import ANY, agreement, boxes_of, iou


def test_iou_by_hand() -> None:
    box = np.array([0.0, 0.0, 0.5, 0.5])
    others = np.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert iou(box, others) == pytest.approx([1, 1 / 3, 0, 1 / 4])


def test_boxes_of_a_map_by_hand() -> None:
    """Two pieces of class 1 (value 2), one of class 0; pixels that touch at a corner are one piece."""
    class_HW = np.zeros((4, 8), dtype=np.int64)
    class_HW[0, 0] = class_HW[1, 1] = class_HW[3, 6] = 2
    class_HW[2:, 4] = 1
    found = boxes_of(class_HW)
    assert set(found) == {0, 1, ANY} and found[ANY][-1].tolist() == [0, 0, 0.875, 1.0]
    assert found[0].tolist() == [[0.5, 0.5, 0.625, 1.0]] * 2  # the piece, and all of it
    assert found[1].tolist() == [[0, 0, 0.25, 0.5], [0.75, 0.75, 0.875, 1.0], [0, 0, 0.875, 1.0]]
    asked = np.array([[1, 0, 0, 0.25, 0.5], [0, 0.5, 0.0, 0.625, 1.0], [7, 0, 0, 1, 1]])
    assert agreement(asked, found) == pytest.approx((1 + 0.5 + 0) / 3)
    assert boxes_of(np.zeros((4, 4), dtype=np.int64)) == {}


def test_true_maps_agree_with_the_boxes_of_their_image_and_not_with_another_s() -> None:
    """Exactly where no kind comes twice (two of one kind may touch); another image's boxes hardly ever do."""
    batch = to_batch(Shapes(32, train_images=300, fields=["boxes", "segmentation"]).__getitems__(list(range(300))))
    asked = [boxes[boxes[:, 0] >= 0] for boxes in batch["boxes"].numpy()]
    found = [boxes_of(class_HW) for class_HW in batch["segmentation"].numpy()]
    own = np.array([agreement(*pair) for pair in zip(asked, found, strict=True)])
    other = np.array([agreement(*pair) for pair in zip(asked, found[1:] + found[:1], strict=True)])
    alone = np.array([len(set(boxes[:, 0])) == len(boxes) for boxes in asked])
    assert alone.sum() > 200 and (own[alone] == 1).all() and own.mean() > 0.97 and other.mean() < 0.1
