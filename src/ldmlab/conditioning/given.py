"""From what a person asked (`Asked`) to conditions as the data set would give them: files are read and checked here.

Letters: H W pixels, K boxes.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ldmlab.conditioning.asked import Asked
from ldmlab.conditioning.base import Conditioner
from ldmlab.conditioning.class_label import class_index
from ldmlab.conditioning.compose import parts_of
from ldmlab.conditioning.pictures import palette
from ldmlab.conditioning.source import POSITION, GivenCondition
from ldmlab.data.base import ImageDataset, Sample, channels_of
from ldmlab.data.fields import Field
from ldmlab.errors import ConfigError

Side = tuple[int, int]
"""Height and width in pixels."""

KINDS = {"prompt": "text", "label": "label", "layout": "boxes", "semantic": "classes", "depth": "map"}
"""Word → the kind of field that it is (`data.fields.Kind`)."""


def given_conditions(
    asked: Asked, conditioner: Conditioner, needs: Sequence[str], data: ImageDataset, side: Side, label: Any = None
) -> tuple[GivenCondition, ...]:
    """The conditions that were given, () where none was: only seeds, or where to begin.

    needs: fields that samples are drawn for (`Resolved.condition_fields`). side: of samples, height and width
    in pixels. label: `cond.label`, for all.

    Raises ConfigError for a condition that this denoiser does not take, for one that it needs beside, and for files that are not
    what they should be.
    """
    found = []
    for k in range(asked.conditions):
        words = asked.of(k)
        if asked.strength is not None:
            words.pop("image")  # where sampling begins, not what it is told
        if label is not None and words:
            if "label" in words:
                raise ConfigError(f"cond.label={label} and cond.label=[…] are both given. Leave one out.")
            words["label"] = str(label)
        if words:
            found.append(_condition(words, conditioner, tuple(needs), data, side))
    return tuple(found)


def _condition(
    words: dict[str, str], conditioner: Conditioner, needs: tuple[str, ...], data: ImageDataset, side: Side
) -> GivenCondition:
    shown = {name: part for part in parts_of(conditioner) for name in getattr(part, "shows", ())}
    sample: Sample = {}
    if "mask" in words and "hole" not in shown:
        raise ConfigError(f"mask={words['mask']}: this denoiser fills no hole{_instead(needs, data, shown)}.")
    for word, value in words.items():
        if word in KINDS:
            field = _field(word, value, needs, data, shown)
            sample[field.name] = _READERS[word](value, field, side, data, conditioner)
        elif word == "image" and "small_image" in shown:
            sample["small_image"] = small_picture(value, side, shown["small_image"].factor, channels_of(data))
        elif word == "image" and "hole" in shown:
            if "mask" not in words:
                raise ConfigError(
                    f"image={value}: this denoiser fills a hole in a picture, and no mask says where it is. Give "
                    "mask=mask.png, of the picture's size and white in the hole."
                )
            sample["image"] = photograph(value, side, channels_of(data))
            sample["hole"] = mask(words["mask"], value, side)
        elif word == "image":
            raise ConfigError(
                f"image={value}: this denoiser takes no picture as its condition{_instead(needs, data, shown)}. To start from the "
                "picture, say how far: strength=0.6."
            )
    own = [name for name in needs if not (name == "image" and "small_image" in sample)]
    own += [name for name in ("small_image", "hole") if name in sample]
    lacking = [name for name in own if name != POSITION and name not in sample]
    if lacking:
        typed = ", ".join(f"{word}={value}" for word, value in words.items())
        listed = " and ".join(_words(lacking, data, shown))
        raise ConfigError(f"{typed} is not the whole condition: this denoiser also takes {listed}. Give it too.")
    said = ", ".join(
        value if word in ("prompt", "label") else f"{word} {Path(value).name}" for word, value in words.items()
    )
    return GivenCondition(sample, tuple(own), data, said)


def _field(word: str, value: str, needs: Sequence[str], data: ImageDataset, shown: dict[str, Any]) -> Field:
    """The field of the condition that a word is. ConfigError where this denoiser takes none of its kind."""
    for field in data.declared:
        if field.kind == KINDS[word] and field.name in needs:
            return field
    option = "cond.label" if word == "label" else word
    raise ConfigError(f"{option}={value}: this denoiser takes no {_NOUNS[word]}{_instead(needs, data, shown)}.")


def _instead(needs: Sequence[str], data: ImageDataset, shown: dict[str, Any]) -> str:
    words = _words(needs, data, shown)
    return f"; it takes {' and '.join(words)}" if words else "; it is unconditional"


def _words(needs: Sequence[str], data: ImageDataset, shown: dict[str, Any]) -> list[str]:
    """What to write for the fields that a denoiser needs."""
    of_kind = {kind: word for word, kind in KINDS.items()}
    declared = {field.name: of_kind.get(field.kind) for field in data.declared}
    pictures = "image=photo.png mask=mask.png" if "hole" in shown else "image=low.png"
    found = []
    for name in needs:
        word = declared.get(name)
        found += [pictures] if name in ("image", "small_image", "hole") else [_SHORT[word]] if word else []
        found += [f"the field {name}, which no word gives"] if name in declared and not word else []
    return list(dict.fromkeys(found))


_NOUNS = {"prompt": "text", "label": "class", "layout": "boxes", "semantic": "map of classes", "depth": "map of depths"}
_SHORT = {
    "prompt": "prompt=…", "label": "cond.label=…", "layout": "layout=boxes.json", "semantic": "semantic=map.png",
    "depth": "depth=depth.png",
}  # fmt: skip


# ---- pictures ------------------------------------------------------------------------------------------------------------


def _file(option: str, value: str) -> Path:
    """ConfigError where there is none, for names that no file can have too."""
    path = os.path.expanduser(value)
    if not os.path.isfile(path):
        raise ConfigError(f"{option}={value}: no such file. Give the path of one that is there.")
    return Path(path)


def _opened(option: str, value: str, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a picture file. ConfigError, naming the option, where there is none."""
    path = _file(option, value)
    try:
        return read(path)
    except ConfigError:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise ConfigError(
            f"{option}={value} is not a picture that can be read ({error}). Give a PNG or a JPEG."
        ) from None


def photograph(value: str, side: Side, channels: int) -> np.ndarray:
    """uint8 [H, W, C]: the centre of a picture at the model's size, cut out and made smaller as the training images are.

    channels: of the training images. Raises ConfigError for a picture that is smaller than the model's.
    """
    from ldmlab.data.transforms import fitted, read_picture  # Pillow: an eighth of a second of every start

    picture = _opened("image", value, partial(read_picture, channels=channels))
    if picture.height < side[0] or picture.width < side[1]:
        raise ConfigError(
            f"image={value} has {picture.width}x{picture.height} pixels (width x height), and this denoiser makes pictures of "
            f"{side[1]}x{side[0]}. Give one of at least that size."
        )
    return fitted(picture, *side)


def mask(value: str, image: str, side: Side) -> np.ndarray:
    """uint8 [H, W], 1 in the hole (white), cut out as its picture is. ConfigError for another size, for one that is transparent
    anywhere, and for no hole."""
    from ldmlab.data.transforms import fitted, read_picture, read_rgb

    if np.array(_opened("mask", value, partial(read_picture, channels=4)))[..., 3].min() < 255:
        raise ConfigError(
            f"mask={value} is transparent in places, which may mean the hole or what stays. Save it without transparency, white in the "
            "hole and black elsewhere."
        )
    picture, of = _opened("mask", value, read_rgb), _opened("image", image, read_rgb)
    if picture.size != of.size:
        raise ConfigError(
            f"mask={value} has {picture.width}x{picture.height} pixels (width x height), and its picture {image} has "
            f"{of.width}x{of.height}. Give a mask of the picture's size."
        )
    hole_HW = (fitted(picture, *side).mean(axis=2) >= 128).astype(np.uint8)
    if not hole_HW.any():
        raise ConfigError(f"mask={value} has no white pixel where the picture is cut out, so nothing is to be filled.")
    return hole_HW


def small_picture(value: str, side: Side, factor: int, channels: int) -> np.ndarray:
    """uint8 [H/factor, W/factor, C]: a picture to enlarge, which has this size already."""
    from ldmlab.data.transforms import read_picture

    picture = _opened("image", value, partial(read_picture, channels=channels))
    _check_size(
        "image", value, picture.size, (side[0] // factor, side[1] // factor), "Make it that size, or cut a part out."
    )
    pixels: np.ndarray = np.array(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _check_size(option: str, value: str, size: tuple[int, int], side: Side, way: str) -> None:
    if size != (side[1], side[0]):
        raise ConfigError(
            f"{option}={value} has {size[0]}x{size[1]} pixels (width x height), and this denoiser takes {side[1]}x{side[0]}. {way}"
        )


# ---- fields of the data --------------------------------------------------------------------------------------------------


def _label(value: str, field: Field, side: Side, data: ImageDataset, conditioner: Conditioner) -> int:
    return class_index(value, data.class_names)


def _text(value: str, field: Field, side: Side, data: ImageDataset, conditioner: Conditioner) -> str:
    return value


def _depth(value: str, field: Field, side: Side, data: ImageDataset, conditioner: Conditioner) -> np.ndarray:
    """float32 [H, W] in [0, 1] from a grey picture of 8 or 16 bits: black is 0 (near), white 1 (far)."""
    from PIL import Image

    def read(path: Path) -> Any:
        with Image.open(path) as opened:
            opened.load()
            if opened.mode == "F":
                raise ValueError("floating point numbers, which have no largest value; save it with 8 or 16 bits")
            return opened.copy()

    picture = _opened("depth", value, read)
    _check_size("depth", value, picture.size, side, "Make it that size.")
    pixels = np.array(picture.convert("RGB") if picture.mode in ("P", "RGBA", "LA") else picture)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ConfigError(f"depth={value} is a colour picture. Give a grey one, black near and white far.")
        pixels = pixels[..., 0]
    deepest = 65535 if picture.mode.startswith("I") else 1 if picture.mode == "1" else 255
    depth_HW: np.ndarray = (pixels.astype(np.float64) / deepest).clip(0, 1).astype(np.float32)
    return depth_HW


def _semantic(value: str, field: Field, side: Side, data: ImageDataset, conditioner: Conditioner) -> np.ndarray:
    """uint8 or int64 [H, W]: the numbers of a grey or palette picture, or of a colour picture whose colours are those of `palette`.

    A palette picture in these colours is read by them: programs that make files smaller put colours into a palette in any order.
    """
    from PIL import Image

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as opened:
            opened.load()
            picture = opened.getchannel("L") if opened.mode == "LA" else opened
            painted = picture.mode == "P" and _painted(np.array(picture.convert("RGB")), field.values or 0)
            numbered = (picture.mode in ("L", "P", "1") or picture.mode.startswith("I")) and not painted
            return np.array(picture if numbered else picture.convert("RGB"))

    pixels: np.ndarray = _opened("semantic", value, read)
    _check_size(
        "semantic",
        value,
        (pixels.shape[1], pixels.shape[0]),
        side,
        "Make it that size by the nearest pixel, which mixes no classes.",
    )
    classes = field.values or 0
    return _by_number(value, pixels, classes) if pixels.ndim == 2 else _by_colour(value, pixels, classes)


def _by_number(value: str, map_HW: np.ndarray, classes: int) -> np.ndarray:
    unknown = sorted(set(np.unique(map_HW).tolist()) - set(range(classes)))
    if unknown:
        y, x = np.argwhere(map_HW == unknown[0])[0]
        raise ConfigError(
            f"semantic={value} has the class {_listed(unknown)}, first at column {x}, row {y}, and this denoiser knows 0 to "
            f"{classes - 1}. Change it in the map."
        )
    return map_HW.astype(np.uint8 if classes <= 256 else np.int64)


def _painted(pixels_HW3: np.ndarray, classes: int) -> bool:
    """Whether each colour is one of `palette`."""
    used = np.unique(pixels_HW3.reshape(-1, 3), axis=0)
    return bool((used[:, None] == palette(classes)[None]).all(axis=2).any(axis=1).all())


def _by_colour(value: str, pixels_HW3: np.ndarray, classes: int) -> np.ndarray:
    colours = palette(classes)
    match_HWK = (pixels_HW3[:, :, None] == colours[None, None]).all(axis=3)
    strange_HW = ~match_HWK.any(axis=2)
    if strange_HW.any():
        y, x = np.argwhere(strange_HW)[0]
        shown = ", ".join(f"{_hex(colour)} {k}" for k, colour in enumerate(colours[:20]))
        raise ConfigError(
            f"semantic={value} has the colour {_hex(pixels_HW3[y, x])} at column {x}, row {y}, which is no class. Colours are "
            f"{shown}{' …' if classes > 20 else ''}; or give a grey or palette picture of class numbers."
        )
    return match_HWK.argmax(axis=2).astype(np.uint8 if classes <= 256 else np.int64)


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{int(level):02x}" for level in colour)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" …" if len(numbers) > 5 else "")


def _boxes(value: str, field: Field, side: Side, data: ImageDataset, conditioner: Conditioner) -> np.ndarray:
    """float32 [K, 5] from JSON: a list of {"class": name or number, "box": [x0, y0, x1, y1]} in fractions of the side, or
    {"width", "height", "objects"} with boxes in pixels. K is the number of objects that the conditioner reads; unused rows are -1.
    """
    path = _file("layout", value)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"layout={value} is no JSON file that can be read ({error}). {_LAYOUT}") from None
    width: Any = 1.0
    height: Any = 1.0
    if isinstance(found, dict):
        width, height, found = (found.get(name) for name in ("width", "height", "objects"))
        if not all(_number(length) and length > 0 for length in (width, height)):
            raise ConfigError(f"layout={value} gives boxes in pixels and lacks width and height. {_LAYOUT}")
    if not isinstance(found, list) or not found:
        raise ConfigError(f"layout={value} has no list of objects. {_LAYOUT}")
    most = next(part.objects for part in parts_of(conditioner) if getattr(part, "field", None) == field.name)
    if len(found) > most:
        raise ConfigError(f"layout={value} has {len(found)} objects, and this denoiser reads {most}. Leave some out.")
    boxes_K5 = np.full((most, 5), -1, dtype=np.float32)
    for k, each in enumerate(found):
        boxes_K5[k] = _box(f"layout={value}, object {k}", each, (width, height), _class_names(field, data))
    return boxes_K5


def _class_names(field: Field, data: ImageDataset) -> tuple[str, ...]:
    """Of a field's numbers: those of the labels where they are as many."""
    names, count = tuple(data.class_names), field.values or 0
    return names if len(names) == count else tuple(str(number) for number in range(count))


def _box(where: str, each: Any, sides: tuple[float, float], names: tuple[str, ...]) -> list[float]:
    box = each.get("box") if isinstance(each, dict) else None
    if not isinstance(each, dict) or "class" not in each or not isinstance(box, list) or len(box) != 4:
        raise ConfigError(f"{where} has no class and box. {_LAYOUT}")
    if not all(_number(edge) for edge in box):
        raise ConfigError(f"{where}: its box {box} is not four numbers. {_LAYOUT}")
    x0, y0, x1, y1 = (edge / length for edge, length in zip(box, (*sides, *sides), strict=True))
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ConfigError(
            f"{where}: its box {box} must be left, top, right, bottom within the picture, with left < right and top < bottom. {_LAYOUT}"
        )
    try:
        return [class_index(each["class"], names), x0, y0, x1, y1]
    except ConfigError as error:
        said = str(error).replace(f"cond.label={each['class']!r}", f"{each['class']!r}", 1)
        raise ConfigError(f"{where}: {said}") from None


def _number(value: Any) -> bool:
    """A number of a size that a picture can have: neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


_LAYOUT = (
    'Write [{"class": "star", "box": [0.1, 0.2, 0.6, 0.9]}, …] with left, top, right, bottom as fractions, or {"width": 640, "height": '
    '480, "objects": […]} with boxes in pixels.'
)
_READERS: dict[str, Callable[[str, Field, Side, ImageDataset, Conditioner], Any]] = {
    "prompt": _text, "label": _label, "layout": _boxes, "semantic": _semantic, "depth": _depth,
}  # fmt: skip
