"""Where conditions come from: labels as before, held-out examples whole, and what a person gave."""

from typing import Any

import numpy as np
import pytest
import torch

from ldmlab.conditioning.source import (
    ConditionSource,
    GivenCondition,
    HeldOut,
    Labels,
    Unconditional,
    chosen,
    labels_for,
)
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_uint8
from ldmlab.data.shapes import FIELDS, Shapes
from ldmlab.errors import ConfigError
from ldmlab.randomness import seed_of

NEEDS = ("label", "caption", "boxes", "segmentation", "depth")


def shapes(split: str = "val", fields: tuple[str, ...] = FIELDS) -> Shapes:
    return Shapes(32, split, train_images=50, val_images=30, fields=list(fields), cached=False)  # type: ignore[arg-type]


def of(needs: tuple[str, ...], mode: str = "uniform", **more: Any) -> ConditionSource:
    return chosen(mode, needs, shapes("train"), shapes("val"), n=25, seed=4, **more)  # type: ignore[arg-type]


def test_labels_are_drawn_as_they_always_were() -> None:
    """The same generator, seeded by the same words: written out here a second time."""
    rng = torch.Generator().manual_seed(seed_of("labels", 4))
    random = torch.randint(10, (25,), generator=rng).numpy()
    rng = torch.Generator().manual_seed(seed_of("labels", 4))
    from_data = shapes("train").labels()[torch.randint(50, (25,), generator=rng).numpy()]
    for mode, wanted in (("uniform", np.arange(25) % 10), ("random", random), ("from_data", from_data)):
        source = of(("label",), mode)
        assert isinstance(source, Labels)
        batch = source.batch([3, 0, 24])
        assert batch["label"].dtype == torch.int64 and batch["label"].tolist() == wanted[[3, 0, 24]].tolist()  # type: ignore[union-attr]
        names = shapes().class_names
        assert source.record(25) == {"label": wanted.tolist(), "class_names": list(names)}
        assert source.describe(24) == names[wanted[24]] and source.picture(0) is None


def test_one_class_that_was_asked_for() -> None:
    for label in (4, "4", "star"):
        source = of(("label",), "random", label=label)
        assert source.batch(list(range(25)))["label"].tolist() == [4] * 25 and source.describe(7) == "star"  # type: ignore[union-attr]
    assert labels_for("uniform", None, 7, 3, None, 0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ConfigError, match=r"cond\.label='dog' is not a class"):
        of(("label",), label="dog")


def test_nothing_is_asked() -> None:
    source = of(())
    assert isinstance(source, Unconditional)
    assert (source.batch([0, 1]), source.describe(0), source.picture(0), source.record(3)) == ({}, "", None, {})


def test_held_out_conditions_are_all_of_the_same_example() -> None:
    source, val = of(NEEDS), shapes("val")
    assert isinstance(source, HeldOut) and source.fields == NEEDS
    rows = [source.row(i) for i in range(30)]
    assert sorted(rows) == list(range(30)) and rows != list(range(30)) and source.row(30) == rows[0]
    found, wanted = source.batch([7, 2, 11]), to_batch(val.__getitems__([rows[7], rows[2], rows[11]]))
    assert set(found) == set(NEEDS) and found["caption"] == wanted["caption"]
    for name in set(NEEDS) - {"caption"}:
        assert torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype  # type: ignore[arg-type, union-attr]
    one_by_one = [source.batch([i])["segmentation"] for i in (7, 2, 11)]
    assert torch.equal(torch.cat(one_by_one), found["segmentation"])  # type: ignore[arg-type]


def test_the_order_of_held_out_conditions_is_the_seed_s() -> None:
    val = shapes("val")
    orders = [[HeldOut(val, ("label",), seed).row(i) for i in range(30)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_record_finds_held_out_conditions_again() -> None:
    source, val = of(NEEDS), shapes("val")
    record = source.record(5)
    samples = val.__getitems__(record["example"])
    assert record["label"] == [sample["label"] for sample in samples]
    assert record["caption"] == [sample["caption"] for sample in samples]
    assert record["fields"] == list(NEEDS) and record["class_names"] == list(val.class_names)
    assert source.describe(0) == samples[0]["caption"]
    assert of(("label", "depth")).describe(0) == val.class_names[samples[0]["label"]]
    assert of(("depth",)).describe(0) == f"example {record['example'][0]}"


def test_the_image_of_an_example_can_be_its_condition() -> None:
    source, val = of(("image", "mask")), shapes("val")
    assert isinstance(source, HeldOut)
    image = source.batch([3])["image"]
    assert isinstance(image, torch.Tensor) and image.shape == (1, 3, 32, 32)
    assert np.array_equal(to_uint8(image)[0].numpy(), val[source.row(3)]["image"])


def test_pictures_show_the_condition() -> None:
    source = of(NEEDS)
    assert isinstance(source, HeldOut)
    sample = shapes("val")[source.row(0)]
    seen = of(("segmentation",)).picture(0)
    assert seen is not None and seen.dtype == np.uint8 and seen.shape == (32, 32, 3)
    for kind in np.unique(sample["segmentation"]):  # a colour per class, and no colour twice
        assert len(np.unique(seen[sample["segmentation"] == kind], axis=0)) == 1
    assert len(np.unique(seen.reshape(-1, 3), axis=0)) == len(np.unique(sample["segmentation"]))
    depth = of(("depth",)).picture(0)
    assert depth is not None
    order = np.argsort(sample["depth"].ravel())
    assert (np.diff(depth[:, :, 0].ravel()[order].astype(int)) >= 0).all() and depth.max() == 255
    low = of(("low_res",)).picture(0)
    assert low is not None and np.array_equal(low, sample["low_res"])
    boxes = of(("boxes",)).picture(0)
    assert boxes is not None and boxes.shape == (64, 64, 3) and (boxes < 255).any() and (boxes == 255).any()
    assert of(("caption",)).picture(0) is None


def test_what_a_person_gave_is_every_image_s_condition() -> None:
    val = shapes("val")
    map_HW = val[0]["segmentation"]
    source = of(("label", "segmentation"), given={"label": 3, "segmentation": map_HW})
    assert isinstance(source, GivenCondition)
    batch = source.batch([0, 9, 4])
    assert batch["label"].tolist() == [3, 3, 3]  # type: ignore[union-attr]
    assert torch.equal(batch["segmentation"], torch.from_numpy(map_HW).expand(3, -1, -1))  # type: ignore[arg-type]
    assert source.describe(5) == "triangle" and source.picture(0) is not None
    record, other = source.record(2), of(("segmentation",), given={"segmentation": map_HW[::-1].copy()}).record(2)
    assert record["label"] == [3, 3] and record["segmentation"]["shape"] == [32, 32]
    assert record["segmentation"]["sha256"] != other["segmentation"]["sha256"]
    text = of(("caption",), given={"caption": "a red star"})
    assert text.batch([0, 1]) == {"caption": ["a red star"] * 2} and text.describe(0) == "a red star"


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"needs 'segmentation', and the condition that was given has label"):
        of(("label", "segmentation"), given={"label": 3})
    with pytest.raises(ConfigError, match=r"needs the field 'caption' of held-out examples.*has label beside"):
        HeldOut(shapes("val", ("label",)), ("caption",), 0)
    with pytest.raises(ConfigError, match=r"cond\.label=2 asks for a class.*also needs depth"):
        of(("label", "depth"), label=2)
