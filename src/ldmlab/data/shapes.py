"""The embedded data set: generated scenes of coloured shapes, so that every stage runs without a download.

Image i is a pure function of (seed, split, i, resolution). `scene.py` decides what is in it, `drawing.py` paints it;
`painted.py` keeps what was painted; this file counts and hands out.

Shape letters: B images, H W pixels, N images of the split.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np

from ldmlab.data import fields as declare
from ldmlab.data.base import SPLITS, Sample, Split, digest
from ldmlab.data.drawing import Drawing, draw
from ldmlab.data.painted import Painted
from ldmlab.data.scene import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    KINDS,
    OBJECTS,
    VERSION,
    Scenes,
    caption,
    main_kind,
    scenes,
    stream,
)
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given, Items, Range, Seed

FieldName = Literal[
    "label", "colour", "background", "fill", "place", "caption", "boxes", "segmentation", "depth", "mask", "low_res"
]  # fmt: skip
FIELDS: tuple[FieldName, ...] = get_args(FieldName)
DECLARED = {
    field.name: field
    for field in (
        declare.label(len(KINDS)), declare.label(len(COLOURS), "colour"), declare.label(len(BACKGROUNDS), "background"),
        declare.label(len(FILLS), "fill"), declare.place("place"), declare.text("caption"), declare.boxes("boxes", len(KINDS)),
        declare.class_map("segmentation", 1 + len(KINDS)), declare.float_map("depth"), declare.class_map("mask", 2),
        declare.picture("low_res"),
    )
}  # fmt: skip
OF_SCENE: dict[str, Callable[[Scenes, int], Any]] = {  # fields that need no pixel: (scenes, b) → of image b
    "colour": lambda scene, b: int(scene.colour_BM[b, 0]),
    "background": lambda scene, b: int(scene.background_B[b]),
    "fill": lambda scene, b: int(scene.fill_BM[b, 0]),
    "place": lambda scene, b: np.array(
        [scene.x_BM[b, 0], scene.y_BM[b, 0], 2 * scene.radius_BM[b, 0]], dtype=np.float32
    ),
    "caption": caption,
}
DRAWN = frozenset({"boxes", "segmentation", "depth", "mask"})  # fields that need the painting's owner map
LOW_RES_FACTOR = 4
Generated = Annotated[int, Range(at_least=2, at_most=10**9)]  # images of a split
_PIXELS_AT_ONCE = 1 << 16  # images are painted in groups of about this many pixels, which stay in the processor's cache


class Shapes:
    """1 to 4 anti-aliased objects of ten kinds on a textured ground.

    Fields, by name in `fields`:
      label         int, kind of the object with the largest visible area (index into `class_names`)
      colour, fill  int, of the same object (indices into scene.COLOURS, scene.FILLS)
      background    int, its colour (index into scene.BACKGROUNDS)
      place         float32 [3], of the labelled object: x, y of its centre and its side, as fractions of the image's
      caption       str, every object and the background, largest object first
      boxes         float32 [4, 5]: kind, x0, y0, x1, y1 of the visible part as fractions of the side; unused or hidden
                    rows are -1
      segmentation  uint8 [H, W]: 0 background, 1 + kind of the object in front
      depth         float32 [H, W]: 0 near .. 1 far, background 1
      mask          uint8 [H, W]: 1 on the visible part of the labelled object
      low_res       uint8 [H/4, W/4, 3]: box average

    cache: folder for the painted split (uint8 `.npy`, memory-mapped; made at the first use, safe with several
    processes); None, or `cached=False`, paints on every access.
    """

    class_names: tuple[str, ...] = KINDS

    def __init__(
        self,
        resolution: Annotated[int, Range(at_least=16, at_most=4_096)] = 32,
        split: Annotated[Split, Given] = "train",
        train_images: Generated = 50_000,
        val_images: Generated = 2_000,
        test_images: Generated = 2_000,
        seed: Seed = 0,
        objects: Annotated[int, Range(at_least=1, at_most=OBJECTS)] = OBJECTS,
        fields: Annotated[list[FieldName], Items(distinct=True)] = ["label"],  # noqa: B006 - read only; a list because that is what an option can be
        cached: bool = True,
        flip: bool = False,
        cache: Annotated[Path | None, Given] = None,
    ):
        counts = {"train": train_images, "val": val_images, "test": test_images}
        _check(resolution, split, counts, fields)
        if not 1 <= objects <= OBJECTS:
            raise ConfigError(f"data.objects must be from 1 to {OBJECTS}; got {objects}.")
        self.resolution = resolution
        self.split = split
        self.flip = flip
        self.fields: tuple[str, ...] = tuple(dict.fromkeys(fields))
        self.declared = tuple(DECLARED[name] for name in self.fields)
        self.seed = seed
        self.objects = objects
        self._count = counts[split]
        self._key = stream(seed, split)
        self._painted: Painted | None = None
        if cache is not None and cached:
            file = Path(cache) / f"shapes-{split}-{self.fingerprint()[:16]}.npy"
            self._painted = Painted(file, (counts[split], resolution, resolution, 3), self._paint)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Sample:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        index_B = np.asarray(indices, dtype=np.int64)
        if len(index_B) and not (index_B.min() >= 0 and index_B.max() < self._count):
            raise IndexError(f"shapes {self.split} has images 0 … {self._count - 1}; asked for {indices}")
        if self._painted is not None and not DRAWN.intersection(self.fields):
            image_BHW3 = self._painted()[index_B]
            scene = scenes(self._key, index_B, self.objects) if OF_SCENE.keys() & set(self.fields) else None
            return self._samples(index_B, image_BHW3, scene, None)
        scene = scenes(self._key, index_B, self.objects)
        drawing = self._draw(index_B)
        return self._samples(index_B, drawing.image_BHW3, scene, drawing.owner_BHW)

    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return main_kind(self._key, np.arange(self._count))

    def split_record(self) -> dict[str, object]:
        """How the splits differ, for cards: by the seed of their scenes."""
        return {"rule": "generated; each split has scenes of its own", "split": self.split, "images": self._count}

    def fingerprint(self) -> str:
        """sha256 (hex) of generator version, seed, split, count, resolution and objects."""
        return digest(
            {
                "generator": "shapes",
                "version": VERSION,
                "seed": self.seed,
                "split": self.split,
                "images": self._count,
                "resolution": self.resolution,
                "objects": self.objects,
            }
        )

    def _samples(
        self, index_B: np.ndarray, image_BHW3: np.ndarray, scene: Scenes | None, owner_BHW: np.ndarray | None
    ) -> list[Sample]:
        label_B = main_kind(self._key, index_B)
        samples: list[Sample] = []
        for b, image in enumerate(image_BHW3):
            sample: Sample = {"image": image}
            for field in self.fields:
                if field == "label":
                    sample[field] = int(label_B[b])
                elif field == "low_res":
                    sample[field] = shrink(image, LOW_RES_FACTOR)
                elif field in OF_SCENE:
                    assert scene is not None
                    sample[field] = OF_SCENE[field](scene, b)
                else:
                    assert scene is not None and owner_BHW is not None
                    sample[field] = MAPS[field](scene, b, owner_BHW[b])
            samples.append(sample)
        return samples

    def _draw(self, index_B: np.ndarray) -> Drawing:
        step = max(1, _PIXELS_AT_ONCE // self.resolution**2)
        parts = [
            draw(scenes(self._key, index_B[i : i + step], self.objects), self.resolution)
            for i in range(0, len(index_B), step)
        ]
        return Drawing(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("image_BHW3", "owner_BHW"))
        )

    def _paint(self, index_B: np.ndarray) -> np.ndarray:
        return self._draw(index_B).image_BHW3


def _check(resolution: int, split: str, counts: dict[str, int], fields: list[FieldName]) -> None:
    if resolution < 16:
        raise ConfigError(
            f"data.resolution={resolution}: the kinds of shapes are recognisable from 16 pixels up; set 16 or more."
        )
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"data.{name}_images={count}: a split needs at least one image; set 1 or more.")
    for field in fields:
        if field not in FIELDS:
            raise ConfigError(f"data.fields: shapes has no field {field!r}; choose from {', '.join(FIELDS)}.")
    if "low_res" in fields and resolution % LOW_RES_FACTOR:
        low, high = resolution // LOW_RES_FACTOR * LOW_RES_FACTOR, -(-resolution // LOW_RES_FACTOR) * LOW_RES_FACTOR
        raise ConfigError(
            f"data.resolution={resolution} is not a multiple of {LOW_RES_FACTOR}, which the field low_res needs; "
            f"try {low} or {high}."
        )


def shrink(image_HW3: np.ndarray, factor: int) -> np.ndarray:
    """Average over factor x factor boxes, rounded half up; uint8 [H/factor, W/factor, 3]."""
    h, w = (side // factor for side in image_HW3.shape[:2])
    total = image_HW3.reshape(h, factor, w, factor, 3).sum(axis=(1, 3), dtype=np.uint32)
    return ((total + factor**2 // 2) // factor**2).astype(np.uint8)


def _boxes(scene: Scenes, b: int, owner_HW: np.ndarray) -> np.ndarray:
    boxes = np.full((OBJECTS, 5), -1, dtype=np.float32)
    for m in range(OBJECTS):
        ys, xs = np.nonzero(owner_HW == m)
        if len(ys):
            corners = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / len(owner_HW)
            boxes[m] = [scene.kind_BM[b, m], *corners]
    return boxes


def _segmentation(scene: Scenes, b: int, owner_HW: np.ndarray) -> np.ndarray:
    return np.append(scene.kind_BM[b] + 1, 0).astype(np.uint8)[owner_HW]  # -1 reads the last entry: background


def _depth(scene: Scenes, b: int, owner_HW: np.ndarray) -> np.ndarray:
    return np.append(scene.depth_BM[b], 1).astype(np.float32)[owner_HW]


def _mask(scene: Scenes, b: int, owner_HW: np.ndarray) -> np.ndarray:
    return (owner_HW == 0).astype(np.uint8)


MAPS = {"boxes": _boxes, "segmentation": _segmentation, "depth": _depth, "mask": _mask}
