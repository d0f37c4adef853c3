"""A canvas of examples: pictures and maps joined, boxes moved, the same condition as each example alone."""

import numpy as np
import torch

from ldmlab.conditioning.compose import Compose, fit_to
from ldmlab.conditioning.low_resolution import LowResolution
from ldmlab.conditioning.spatial_rescaler import SpatialRescaler
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_float
from ldmlab.data.mosaic import Mosaic
from ldmlab.data.shapes import Shapes

FIELDS = ["label", "boxes", "segmentation", "low_res"]
SHAPES = Shapes(16, "val", val_images=11, fields=FIELDS)  # type: ignore[arg-type]


def test_examples_keep_their_size_and_order() -> None:
    canvas, (first, second, third, *_) = Mosaic(SHAPES, 32, 40), [SHAPES[i] for i in range(6)]
    assert (len(canvas), canvas.examples(1)) == (2, [6, 7, 8, 9, 10, 0])
    found = canvas[0]
    assert found["image"].shape == (32, 40, 3) and found["low_res"].shape == (8, 10, 3)
    assert np.array_equal(found["image"][:16, 16:32], second["image"])
    assert np.array_equal(found["segmentation"][:16, 32:], third["segmentation"][:, :8])
    assert np.array_equal(found["low_res"][:4, :4], first["low_res"]) and found["label"] == first["label"]
    assert canvas.fingerprint() != Mosaic(SHAPES, 40, 32).fingerprint()


def test_boxes_lie_around_the_same_pixels() -> None:
    found = Mosaic(SHAPES, 32, 40)[0]
    used = found["boxes"][found["boxes"][:, 0] >= 0]
    assert len(used) > 4 and len(found["boxes"]) == 6 * 4
    for kind, *corners in used:
        x0, y0, x1, y1 = (round(float(c) * side) for c, side in zip(corners, (40, 32, 40, 32), strict=True))
        inside = found["segmentation"][y0:y1, x0:x1]
        assert (inside == 1 + int(kind)).any()


def test_the_condition_of_a_canvas_is_that_of_its_examples() -> None:
    classes = {field.name: field.values for field in SHAPES.declared}
    parts = [
        SpatialRescaler((3, 4, 4), 16, classes),
        LowResolution((3, 4, 4), 16),
    ]
    conditioner = Compose(parts)

    def condition(samples: list) -> torch.Tensor:
        batch = to_batch([{**sample, "position": 0} for sample in samples])
        batch["image"] = to_float(batch["image"])
        found = conditioner(batch).concat_BCHW
        assert found is not None
        return found.detach()

    alone = condition([SHAPES[1]])
    fit_to(conditioner, (8, 12))
    whole = condition([Mosaic(SHAPES, 32, 48)[0]])
    assert whole.shape == (1, 6, 8, 12)
    torch.testing.assert_close(whole[:, :3, :4, 4:8], alone[:, :3])
    inner = (slice(None), slice(3, None), slice(1, 3))  # bicubic reduction looks beyond an example's border
    torch.testing.assert_close(whole[..., 4:8][inner][..., 1:3], alone[inner][..., 1:3], atol=0.2, rtol=0)
