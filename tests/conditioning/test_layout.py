"""Layouts as tokens: the published numbers by hand, the empty layout, the order of objects."""

import pytest
import torch
from torch import Tensor

from ldmlab.conditioning.layout import Layout, shuffled, tokens_of
from ldmlab.data.base import to_batch
from ldmlab.data.fields import mirrored_boxes
from ldmlab.data.shapes import KINDS, Shapes
from ldmlab.errors import ConfigError

UNUSED = [-1.0] * 5


def test_published_tokens_by_hand() -> None:
    """8192 numbers: a grid of 90 lines each way, counted row by row; none is 8191; the crop is the whole image."""
    boxes = torch.tensor([[[3, 0.25, 0.5, 1.0, 0.75], UNUSED, [9, 0.0, 0.0, 0.1, 1.0], UNUSED]])
    found = tokens_of(boxes, objects=30, vocab_size=8192)[0].tolist()
    assert len(found) == 92
    # 0.25 · 89 = 22.25 → 22; 0.5 · 89 = 44.5 → 44 (to even, as Python's round); 0.75 · 89 = 66.75 → 67; 0.1 · 89 = 8.9 → 9
    assert found[:6] == [3, 44 * 90 + 22, 67 * 90 + 89, 9, 0, 89 * 90 + 9]
    assert found[6:90] == [8191] * 84 and found[90:] == [0, 8099]


def test_places_come_back_within_half_a_line() -> None:
    """Corner numbers divide into row and column; together they say the box to 1/2 of 1/31, of every box of the data."""
    boxes = to_batch(Shapes(32, train_images=200, fields=["boxes"]).__getitems__(list(range(200))))["boxes"]
    id_BL = tokens_of(boxes, objects=4, vocab_size=1024)[:, :-2].unflatten(1, (4, 3))
    used = boxes[..., 0] >= 0
    assert (id_BL[..., 0] != 1023).sum() == used.sum()
    for b in range(200):
        known = boxes[b][used[b]]
        kinds, corners = id_BL[b, : len(known), 0], id_BL[b, : len(known), 1:]
        back = torch.stack([corners % 32, corners // 32], dim=-1).flatten(1) / 31  # x0, y0, x1, y1
        assert torch.equal(kinds, known[:, 0].long()) and (back - known[:, 1:]).abs().max() <= 0.5 / 31 + 1e-6
    assert not torch.equal(tokens_of(mirrored_boxes(boxes), 4, 1024), tokens_of(boxes, 4, 1024))


def test_too_many_objects_are_left_out_and_none_is_the_empty_layout() -> None:
    boxes = torch.rand(2, 7, 5)
    boxes[1] = -1
    two = tokens_of(boxes, objects=2, vocab_size=100)
    assert two.shape == (2, 8) and torch.equal(two[:, :6], tokens_of(boxes[:, :2], 2, 100)[:, :6])
    assert two[1].tolist() == [99] * 6 + [0, 99]
    layout = Layout({"boxes": 10}, dim=16, depth=1, heads=1, objects=4, vocab_size=100)
    null, empty = layout.null(2, (4, 4), "cpu"), layout({"boxes": torch.full((2, 3, 5), -1.0)})
    assert null.tokens_BLD.shape == (2, 14, 16) and torch.equal(null.tokens_BLD, empty.tokens_BLD)


def test_objects_come_in_an_order_that_is_a_function_of_the_position() -> None:
    """In training alone, at any size of the batch; every order comes up, and every box stays whole."""
    boxes = torch.arange(600 * 15).reshape(600, 3, 5).float()
    position = torch.arange(1000, 1600)
    mixed = shuffled(boxes, position)
    parts: list[Tensor] = [shuffled(boxes[i : i + 150], position[i : i + 150]) for i in range(0, 600, 150)]
    assert torch.equal(torch.cat(parts), mixed) and torch.equal(mixed.sort(dim=1).values, boxes)
    orders = ((mixed[..., 0] - boxes[:, :1, 0]) / 5).long()
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 60
    torch.manual_seed(0)
    layout = Layout({"boxes": 10}, dim=16, depth=1, heads=1, objects=3, vocab_size=100)
    known = torch.tensor([[[1.0, 0.1, 0.1, 0.4, 0.4], [2.0, 0.5, 0.5, 0.9, 0.9], UNUSED]]).expand(8, -1, -1)
    plain, visits = (
        layout({"boxes": known}).tokens_BLD,
        layout({"boxes": known, "position": torch.arange(8)}).tokens_BLD,
    )
    same = [bool(torch.equal(a, b)) for a, b in zip(plain, visits, strict=True)]
    assert True in same and False in same
    still = Layout({"boxes": 10}, dim=16, depth=1, heads=1, objects=3, vocab_size=100, shuffle=False)
    still.load_state_dict(layout.state_dict())
    assert torch.equal(still({"boxes": known, "position": torch.arange(8)}).tokens_BLD, plain)


def test_fields_that_are_no_layout() -> None:
    with pytest.raises(ConfigError, match=r"field=depth is no field of boxes"):
        Layout({"depth": None}, field="depth")
    with pytest.raises(ConfigError, match=r"vocab_size=10: the data has 10 classes.* Set 11 or more"):
        Layout({"boxes": len(KINDS)}, vocab_size=10)
