"""Where the conditions of samples come from: labels, held-out examples, or what a person gave.

Letters: N images of a run, B batch, H W pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ldmlab.conditioning.class_label import class_index
from ldmlab.conditioning.pictures import picture_of
from ldmlab.data.base import ImageDataset, Sample, to_batch
from ldmlab.data.batches import eight_bits, to_float
from ldmlab.errors import ConfigError
from ldmlab.randomness import seed_of

LabelMode = Literal["uniform", "random", "from_data"]
POSITION = "position"  # number of the image in the run, which no data set has: what a conditioner draws at random is drawn by it


class ConditionSource(Protocol):
    """The conditions of images 0 … of a run; image i has the same one at any batch size.

    fields: those that `batch` has.
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        """What a conditioner's `forward` reads, on the CPU: labels int64 [B], maps [B, H, W] or [B, H, W, C] and boxes as the
        data set has them, "image" float32 [B, 3, H, W] in [-1, 1], "position" the indices, texts as lists of B."""
        ...

    def describe(self, i: int) -> str:
        """The condition of image i in words, for captions and file names."""
        ...

    def picture(self, i: int) -> np.ndarray | None:
        """The condition of image i to look at, uint8 [H, W, 3]; None where there is nothing to see."""
        ...

    def record(self, n: int) -> dict[str, Any]:
        """The conditions of images 0 … n-1 as JSON, for conditions.json."""
        ...


@dataclass(frozen=True)
class Unconditional:
    """No condition."""

    fields: tuple[str, ...] = ()

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return {}

    def describe(self, i: int) -> str:
        return ""

    def picture(self, i: int) -> np.ndarray | None:
        return None

    def record(self, n: int) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Labels:
    """A class per image.

    label_N: int64, of images 0 … N-1 (`labels_for`). class_names: of all classes.
    """

    label_N: np.ndarray
    class_names: tuple[str, ...]
    fields: tuple[str, ...] = ("label",)

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return {"label": torch.from_numpy(self.label_N[np.asarray(indices, dtype=np.int64)])}

    def describe(self, i: int) -> str:
        return self.class_names[int(self.label_N[i])]

    def picture(self, i: int) -> np.ndarray | None:
        return None

    def record(self, n: int) -> dict[str, Any]:
        return {"label": self.label_N[:n].tolist(), "class_names": list(self.class_names)}


class HeldOut:
    """Conditions of examples that were not trained on, all fields of an image from one example.

    dataset: usually val. fields: what the conditioner needs; "image" among them is the example's image. seed: of the order,
    which visits every example once before it repeats.

    Raises ConfigError for a field that the data set does not have.
    """

    def __init__(self, dataset: ImageDataset, fields: Sequence[str], seed: int):
        for field in fields:
            if field not in ("image", POSITION, *dataset.fields):
                raise ConfigError(
                    f"the conditioning needs the field '{field}' of held-out examples, and this data set has "
                    f"{', '.join(dataset.fields) or 'no fields'} beside the image. Use cond=none, or data with '{field}'."
                )
        self.dataset, self.fields = dataset, tuple(fields)
        order = np.random.Generator(np.random.PCG64(seed_of("conditions", seed)))
        self.index_N: np.ndarray = order.permutation(len(dataset))

    def row(self, i: int) -> int:
        """Which example of the data set image i has its condition from."""
        return int(self.index_N[i % len(self.index_N)])

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return _of_samples(self.dataset.__getitems__([self.row(i) for i in indices]), self.fields, indices)

    def images(self, indices: list[int]) -> Tensor:
        """The examples' own images, uint8 [B, H, W, C]: what samples of their conditions are compared with."""
        image_BHWC: Tensor = to_batch(self.dataset.__getitems__([self.row(i) for i in indices]))["image"]
        return eight_bits(image_BHWC)

    def describe(self, i: int) -> str:
        said = _in_words(self.dataset.__getitems__([self.row(i)])[0], self.fields, self.dataset.class_names)
        return said or f"example {self.row(i)}"

    def picture(self, i: int) -> np.ndarray | None:
        return picture_of(self.dataset.__getitems__([self.row(i)])[0], self.fields, self.dataset.declared)

    def record(self, n: int) -> dict[str, Any]:
        """The examples' numbers, with their labels and texts; maps are found again by number."""
        record: dict[str, Any] = {"fields": list(self.fields), "example": [self.row(i) for i in range(n)]}
        if "label" in self.fields:
            label_N = self.dataset.labels()[np.asarray(record["example"])]
            record |= {"label": label_N.tolist(), "class_names": list(self.dataset.class_names)}
        texts = [field.name for field in self.dataset.declared if field.kind == "text" and field.name in self.fields]
        if texts:
            samples = self.dataset.__getitems__(record["example"])
            record |= {name: [sample[name] for sample in samples] for name in texts}
        return record


def content_of(array: np.ndarray) -> dict[str, Any]:
    """What an array holds, in few words."""
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": content}


@dataclass(frozen=True)
class GivenCondition:
    """One condition that a person gave, for every image.

    sample: a value per field, as the data set would give it (an integer label, a string, uint8 or float arrays).
    dataset: whose classes and fields they are. said: how it was given, for what has neither text nor class.

    Raises ConfigError for a field that is needed and was not given.
    """

    sample: Sample
    needs: tuple[str, ...]
    dataset: ImageDataset
    said: str = "given"

    def __post_init__(self) -> None:
        for field in self.needs:
            if field != POSITION and field not in self.sample:
                raise ConfigError(
                    f"the conditioning needs '{field}', and the condition that was given has "
                    f"{', '.join(self.sample) or 'nothing'}. Give '{field}' too, or nothing: then held-out examples are used."
                )

    @property
    def fields(self) -> tuple[str, ...]:
        return self.needs

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return _of_samples([self.sample] * len(indices), self.fields, indices)

    def describe(self, i: int) -> str:
        return _in_words(self.sample, self.fields, self.dataset.class_names) or self.said

    def picture(self, i: int) -> np.ndarray | None:
        return picture_of(self.sample, self.fields, self.dataset.declared)

    def record(self, n: int) -> dict[str, Any]:
        """Labels and texts n times, as other sources have them; of arrays their shape and sha256."""
        record: dict[str, Any] = {"fields": list(self.fields), "given": True}
        for name in self.fields:
            if name == POSITION:
                continue
            value = self.sample[name]
            if isinstance(value, np.ndarray):
                record[name] = content_of(value)
            else:
                record[name] = [value] * n
        return record | ({"class_names": list(self.dataset.class_names)} if "label" in self.fields else {})


@dataclass(frozen=True)
class InTurn:
    """Several conditions that a person gave: image i has number i modulo their count. All have the same fields."""

    given: tuple[GivenCondition, ...]

    def of(self, i: int) -> GivenCondition:
        return self.given[i % len(self.given)]

    @property
    def fields(self) -> tuple[str, ...]:
        return self.given[0].fields

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return _of_samples([self.of(i).sample for i in indices], self.fields, indices)

    def describe(self, i: int) -> str:
        return self.of(i).describe(i)

    def picture(self, i: int) -> np.ndarray | None:
        return self.of(i).picture(i)

    def record(self, n: int) -> dict[str, Any]:
        """As of one condition; of each field a list, an entry an image."""
        each = [condition.record(1) for condition in self.given]
        found = {name: value for name, value in each[0].items() if name in ("fields", "given", "class_names")}
        for name in each[0].keys() - found.keys():
            values = [value[0] if isinstance(value := record[name], list) else value for record in each]
            found[name] = [values[i % len(values)] for i in range(n)]
        return found


@dataclass(frozen=True)
class OneOf:
    """The condition that another source has for one image, for every image."""

    source: ConditionSource
    row: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        return self.source.fields

    def batch(self, indices: list[int]) -> dict[str, Tensor | list[Any]]:
        return self.source.batch([self.row] * len(indices))

    def describe(self, i: int) -> str:
        return self.source.describe(self.row)

    def picture(self, i: int) -> np.ndarray | None:
        return self.source.picture(self.row)

    def record(self, n: int) -> dict[str, Any]:
        """Of that image n times."""
        found = self.source.record(self.row + 1)
        kept = ("fields", "class_names")
        return {
            name: [value[self.row]] * n if isinstance(value, list) and name not in kept else value
            for name, value in found.items()
        }


def chosen(
    mode: LabelMode,
    needs: tuple[str, ...],
    data: ImageDataset,
    held_out: ImageDataset,
    n: int,
    seed: int,
    label: int | str | None = None,
    given: Sample | None = None,
    prompt: str | None = None,
) -> ConditionSource:
    """The conditions of n samples.

    mode: `eval.label_mode`, for conditionings of the label alone; all others are sampled from held-out examples. needs: of
    the conditioner. data: trained on, whose labels and classes count; held_out: val. label: `cond.label`, one class for all.
    prompt: `cond.prompt`, one text for all. given: what a person gave instead.

    Raises ConfigError where one class, or what was given, is not enough for the conditioner.
    """
    if given is not None:
        return GivenCondition(given, needs, data)
    if prompt is not None:
        return _prompted(prompt, label, needs, data)
    if not needs:
        return Unconditional()
    if needs == ("label",):
        wanted = None if label is None else class_index(label, data.class_names)
        known = data.labels() if mode == "from_data" else None
        return Labels(labels_for(mode, wanted, n, len(data.class_names), known, seed), data.class_names)
    if label is not None:
        others = ", ".join(field for field in needs if field != "label")
        raise ConfigError(
            f"cond.label={label!r} asks for a class, and this conditioning also needs {others}, which comes from the same "
            "held-out example as its label. Set cond.label=null."
        )
    return HeldOut(held_out, needs, seed)


def _prompted(prompt: str, label: int | str | None, needs: tuple[str, ...], data: ImageDataset) -> GivenCondition:
    """The text for every image, with the class of `cond.label` where the conditioner needs one too."""
    texts = [field.name for field in data.declared if field.kind == "text" and field.name in needs]
    if not texts:
        raise ConfigError(
            f"cond.prompt={prompt!r} asks for a text, but this denoiser takes none. Use cond=text, or cond.prompt=null."
        )
    sample: Sample = {name: prompt for name in texts}
    return GivenCondition(
        sample if label is None else sample | {"label": class_index(label, data.class_names)}, needs, data
    )


def labels_for(
    mode: str, label: int | None, n: int, classes: int, data_labels: np.ndarray | None, seed: int
) -> np.ndarray:
    """Labels of images 0…n-1, int64.

    uniform: i mod classes, so counts differ by at most one. random: drawn uniformly by seed. from_data: drawn from the
    training labels. One class that was asked for overrides all. The mode changes FID, so it is on the card.
    """
    if label is not None:
        return np.full(n, label, dtype=np.int64)
    if mode == "uniform":
        return np.arange(n, dtype=np.int64) % classes
    rng = torch.Generator().manual_seed(seed_of("labels", seed))
    if mode == "random":
        return torch.randint(classes, (n,), generator=rng).numpy()
    assert data_labels is not None
    drawn: np.ndarray = data_labels[torch.randint(len(data_labels), (n,), generator=rng).numpy()]
    return drawn


def _of_samples(samples: list[Sample], fields: Sequence[str], indices: list[int]) -> dict[str, Tensor | list[Any]]:
    own = [{POSITION: i, **sample} for i, sample in zip(indices, samples, strict=True)]
    batch = to_batch([{name: sample[name] for name in fields} for sample in own])
    for name in ("image", "small_image"):
        if name in batch:
            batch[name] = to_float(batch[name])
    return batch


def _in_words(sample: Sample, fields: Sequence[str], class_names: Sequence[str]) -> str:
    """The text of a sample, else its class; nothing where it has neither."""
    texts = [sample[name] for name in fields if isinstance(sample.get(name), str)]
    if texts:
        return " ".join(texts)
    return class_names[int(sample["label"])] if "label" in fields else ""
