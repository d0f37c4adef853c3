"""Data that learn from one set and are scored on another, and the stand-in of data that are not here."""

from functools import partial

import numpy as np
import pytest

from ldmlab.data.pair import pair
from ldmlab.data.planned import Planned
from ldmlab.data.shapes import Shapes
from ldmlab.errors import DataError

ONE, OTHER = (partial(Shapes, train_images=6, val_images=4, test_images=4, seed=seed, cached=False) for seed in (1, 2))


def test_each_split_is_that_of_its_set() -> None:
    """Of the pair's resolution and mirroring, whatever the two have."""
    both = partial(pair, partial(ONE, resolution=16), partial(OTHER, flip=True), resolution=32, flip=False)
    train, val = both(split="train"), both(split="val")
    assert (len(train), len(val), train.resolution, val.resolution, train.flip, val.flip) == (
        6,
        4,
        32,
        32,
        False,
        False,
    )
    alone = Shapes(resolution=32, train_images=6, val_images=4, test_images=4, seed=2, split="val", cached=False)
    np.testing.assert_array_equal(val[3]["image"], alone[3]["image"])
    assert val.fingerprint() == alone.fingerprint() != train.fingerprint()


def test_a_stand_in_has_facts_and_no_pictures() -> None:
    made = partial(Planned, 64, True, train=100, val=10, fields=["label", "caption"], classes=3)
    train, val = made(split="train"), made(split="val")
    assert (len(train), len(val), train.fields, len(train.class_names)) == (100, 10, ("label", "caption"), 3)
    assert train.fingerprint() == made(split="train").fingerprint() != val.fingerprint()
    for ask in (lambda: train[0], lambda: train.__getitems__([0]), train.labels):
        with pytest.raises(DataError, match=r"give data\.root"):
            ask()
