"""From a person's files to the values that the data set would give: exact, or one clear line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmlab.conditioning.asked import Asked
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.compose import Compose
from ldmlab.conditioning.concat_map import ConcatMap
from ldmlab.conditioning.given import given_conditions, photograph, small_picture
from ldmlab.conditioning.inpaint import Inpaint
from ldmlab.conditioning.layout import Layout
from ldmlab.conditioning.low_resolution import LowResolution
from ldmlab.conditioning.pictures import palette
from ldmlab.conditioning.source import GivenCondition, InTurn
from ldmlab.conditioning.spatial_rescaler import SpatialRescaler
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.data.shapes import FIELDS, Shapes
from ldmlab.errors import ConfigError

DATA = Shapes(32, "train", train_images=8, val_images=8, fields=list(FIELDS), cached=False)
VOCABULARY = {field.name: field.values for field in DATA.declared}
SHAPE, SIDE = (3, 8, 8), 32


def conditioner(kind: str) -> Any:
    made = {
        "none": lambda: Compose([]), "label": lambda: ClassLabel(10, 8), "depth": lambda: ConcatMap("depth", SHAPE, VOCABULARY),
        "semantic": lambda: SpatialRescaler(SHAPE, SIDE, VOCABULARY), "superres": lambda: LowResolution(SHAPE, SIDE),
        "inpaint": lambda: Inpaint(SHAPE, SIDE, None), "layout": lambda: Layout(VOCABULARY, 8, 1, 1, 2, 144),
        "both": lambda: Compose([ClassLabel(10, 8), SpatialRescaler(SHAPE, SIDE, VOCABULARY)]),
    }  # fmt: skip
    return made[kind]()


def given(kind: str, size: tuple[int, int] = (SIDE, SIDE), **asked: Any) -> tuple[GivenCondition, ...]:
    part = conditioner(kind)
    words = {name: value if isinstance(value, tuple) else (str(value),) for name, value in asked.items()}
    return given_conditions(Asked(**words), part, part.needs, DATA, size)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(pixels, mode).save(path)
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_map_is_read_by_number_and_by_colour(tmp_path: Path, rng: np.random.Generator) -> None:
    map_HW = rng.integers(0, 11, (32, 32)).astype(np.uint8)
    indexed = Image.fromarray(map_HW, "P")
    indexed.putpalette(palette(11).tobytes())
    indexed.save(tmp_path / "p.png")
    files = [save(tmp_path / "l.png", map_HW), tmp_path / "p.png", save(tmp_path / "rgb.png", palette(11)[map_HW])]
    opaque = np.full_like(map_HW, 255)
    files += [save(tmp_path / "la.png", np.stack([map_HW, opaque], axis=2))]
    files += [save(tmp_path / "rgba.png", np.dstack([palette(11)[map_HW], opaque]))]
    smaller = Image.fromarray(10 - map_HW, "P")  # the same colours, in another order
    smaller.putpalette(palette(11)[::-1].tobytes())
    smaller.save(tmp_path / "smaller.png")
    files += [tmp_path / "smaller.png"]
    for file in files:
        (condition,) = given("semantic", semantic=file)
        assert (
            np.array_equal(condition.sample["segmentation"], map_HW)
            and condition.describe(0) == f"semantic {file.name}"
        )
        batch = condition.batch([0, 5])
        assert conditioner("semantic")(batch).concat_BCHW.shape == (2, 3, 8, 8)


def test_files_of_a_size_that_is_asked(tmp_path: Path, rng: np.random.Generator) -> None:
    """Height and width are not confused, and each kind is read at the size of the samples, not of training."""
    size = (16, 48)
    pixels_HW3 = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    map_HW, hole_HW = pixels_HW3[..., 0] % 11, (pixels_HW3[..., 1] > 128).astype(np.uint8)
    photo, mask = save(tmp_path / "photo.png", pixels_HW3), save(tmp_path / "mask.png", 255 * hole_HW)
    semantic, depth = save(tmp_path / "map.png", map_HW), save(tmp_path / "depth.png", pixels_HW3[..., 2])
    low = save(tmp_path / "low.png", pixels_HW3[:4, :12])
    files = {"semantic": {"semantic": semantic}, "depth": {"depth": depth}, "superres": {"image": low}}
    files["inpaint"] = {"image": photo, "mask": mask}
    read = {kind: given(kind, size, **words)[0].sample for kind, words in files.items()}
    assert np.array_equal(read["semantic"]["segmentation"], map_HW)
    assert np.allclose(read["depth"]["depth"], pixels_HW3[..., 2] / 255)
    assert np.array_equal(read["superres"]["small_image"], pixels_HW3[:4, :12])
    assert np.array_equal(read["inpaint"]["image"], pixels_HW3) and np.array_equal(read["inpaint"]["hole"], hole_HW)
    for kind, wanted in (("semantic", "48x16"), ("depth", "48x16"), ("superres", "12x4")):
        (word,) = files[kind]
        turned = save(tmp_path / f"turned_{kind}.png", np.array(Image.open(files[kind][word])).swapaxes(0, 1))
        with pytest.raises(ConfigError, match=rf"takes {wanted}\."):
            given(kind, size, **{word: turned})
    with pytest.raises(ConfigError, match=r"makes pictures of 48x16"):
        given("inpaint", size, image=save(tmp_path / "thin.png", pixels_HW3[:8]), mask=mask)


def test_depths_of_8_and_16_bits(tmp_path: Path) -> None:
    ramp_HW = np.linspace(0, 255, 32 * 32).round().astype(np.uint8).reshape(32, 32)
    eight = given("depth", depth=save(tmp_path / "8.png", ramp_HW))[0].sample["depth"]
    sixteen = given("depth", depth=save(tmp_path / "16.png", ramp_HW.astype(np.uint16) * 257))[0].sample["depth"]
    assert eight.dtype == np.float32 and np.array_equal(eight, sixteen) and (eight.min(), eight.max()) == (0, 1)
    assert np.allclose(eight, ramp_HW / 255)


def test_pictures_have_the_channels_of_the_data(tmp_path: Path, rng: np.random.Generator) -> None:
    """A photograph, to begin from or to fill, and a small picture, for data of grey and of four-channel pictures."""
    pixels_HW4 = rng.integers(0, 256, (32, 32, 4)).astype(np.uint8)
    file = str(save(tmp_path / "a.png", pixels_HW4))
    assert np.array_equal(photograph(file, (32, 32), 4), pixels_HW4)
    white = Image.alpha_composite(Image.new("RGBA", (32, 32), "white"), Image.fromarray(pixels_HW4)).convert("RGB")
    assert np.array_equal(photograph(file, (32, 32), 3), np.array(white))
    assert np.array_equal(photograph(file, (32, 32), 1)[..., 0], np.array(white.convert("L")))
    assert np.array_equal(small_picture(file, (128, 128), 4, 1), photograph(file, (32, 32), 1))


def test_boxes_as_fractions_and_pixels(tmp_path: Path) -> None:
    objects = [{"class": "star", "box": [0.25, 0.5, 0.75, 1]}]
    (tmp_path / "a.json").write_text(json.dumps(objects))
    inside = {"width": 640, "height": 480, "objects": [{"class": 4, "box": [160, 240, 480, 480]}]}
    (tmp_path / "b.json").write_text(json.dumps(inside), encoding="utf-8-sig")  # as some editors write it
    for name in ("a", "b"):
        boxes_K5 = given("layout", layout=tmp_path / f"{name}.json")[0].sample["boxes"]
        assert boxes_K5.tolist() == [[4, 0.25, 0.5, 0.75, 1], [-1] * 5]


def test_a_small_picture_is_what_is_enlarged(tmp_path: Path, rng: np.random.Generator) -> None:
    small_HW3 = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    (condition,) = given("superres", image=save(tmp_path / "low.png", small_HW3))
    assert condition.fields == ("position", "small_image")
    batch, part = condition.batch([3, 4]), conditioner("superres")
    assert np.array_equal(part.picture(batch)[1].numpy(), small_HW3)
    assert torch.equal(part(batch).concat_BCHW[:1], to_float(torch.from_numpy(small_HW3)[None]))


def test_a_hole_is_filled_where_the_mask_is_white(tmp_path: Path, rng: np.random.Generator) -> None:
    """A picture of 40 x 32: photograph and mask are cut out alike, and the rest stays."""
    photo_HW3 = rng.integers(0, 256, (32, 40, 3)).astype(np.uint8)
    hole_HW = np.zeros((32, 40), np.uint8)
    hole_HW[3:20, 10:17] = 255
    (condition,) = given("inpaint", image=save(tmp_path / "a.png", photo_HW3), mask=save(tmp_path / "m.png", hole_HW))
    batch, part = condition.batch([9]), conditioner("inpaint")
    assert np.array_equal(part.mask(batch)[0, 0].numpy() > 0, hole_HW[:, 4:36] > 0)
    filled = part.complete(torch.zeros(1, 3, 32, 32), batch)
    seen_HW3 = np.where(hole_HW[:, 4:36, None] > 0, 128, photo_HW3[:, 4:36])
    assert np.array_equal(to_uint8(filled)[0].numpy(), seen_HW3)


def test_several_conditions_come_in_turn(tmp_path: Path) -> None:
    maps = [save(tmp_path / f"{k}.png", np.full((32, 32), k, np.uint8)) for k in (1, 2)]
    source = InTurn(given("both", label="star", semantic=tuple(map(str, maps))))
    batch = source.batch([0, 1, 2, 3])
    assert batch["segmentation"][:, 0, 0].tolist() == [1, 2, 1, 2] and batch["label"].tolist() == [4] * 4  # type: ignore[union-attr, index]
    record = source.record(3)
    assert (
        record["label"] == [4] * 3
        and record["segmentation"][0] == record["segmentation"][2] != record["segmentation"][1]
    )
    assert source.describe(1) == "star"


def test_only_seeds_or_a_start_are_no_condition() -> None:
    assert given("label", seeds=(1, 2)) == ()
    assert (
        given_conditions(
            Asked(image=("x.png",), strength=0.5),
            conditioner("label"),
            ("label",),
            DATA,
            (DATA.resolution, DATA.resolution),
        )
        == ()
    )


def wrong(tmp_path: Path, name: str) -> str:
    """The path of a file that is not what it should be."""
    pixels = {
        "size": np.zeros((16, 32), np.uint8), "ids": np.full((32, 32), 11, np.uint8), "colour": np.full((32, 32, 3), 7, np.uint8),
        "tiny": np.zeros((20, 20, 3), np.uint8), "photo": np.zeros((32, 40, 3), np.uint8), "black": np.zeros((32, 40), np.uint8),
        "clear": np.stack([np.full((32, 40), 255, np.uint8), np.eye(32, 40, dtype=np.uint8)], axis=2),
    }  # fmt: skip
    pixels["colour"][0, 0, 0] = 9
    texts = {
        "nojson": "{", "empty": "[]", "noclass": '[{"box": [0, 0, 1, 1]}]', "dog": '[{"class": "dog", "box": [0, 0, 1, 1]}]',
        "outside": '[{"class": "star", "box": [0, 0, 2, 1]}]', "nosize": '{"objects": [{"class": "star", "box": [0, 0, 2, 1]}]}',
        "many": json.dumps([{"class": "star", "box": [0, 0, 1, 1]}] * 3), "nan": '[{"class": "star", "box": [NaN, 0, 1, 1]}]',
        "broken": "no picture", "nothing": "", "deep": "[" * 10_000, "huge": f'[{{"class": "star", "box": [1{"0" * 400}, 0, 1, 1]}}]',
    }  # fmt: skip
    if name == "metres":
        Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "metres.tiff")
        return str(tmp_path / "metres.tiff")
    path = tmp_path / f"{name}{'.png' if name in pixels else '.json'}"
    if name in pixels:
        save(path, pixels[name])
    elif name in texts:
        path.write_text(texts[name])
    return str(path)


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("semantic", {"semantic": "size"}, "has 32x16 pixels (width x height), and this denoiser takes 32x32"),
        ("semantic", {"semantic": "ids"}, "has the class 11, first at column 0, row 0"),
        ("semantic", {"semantic": "colour"}, "has the colour #090707 at column 0, row 0, which is no class"),
        ("semantic", {"semantic": "nowhere"}, "no such file"),
        ("semantic", {"semantic": "broken"}, "is not a picture that can be read"),
        ("semantic", {"depth": "size"}, "takes no map of depths; it takes semantic=map.png"),
        ("none", {"semantic": "ids"}, "takes no map of classes; it is unconditional"),
        ("label", {"prompt": "a star"}, "takes no text; it takes cond.label=…"),
        ("label", {"label": "dog"}, "'dog' is not a class"),
        ("both", {"label": "star"}, "also takes semantic=map.png"),
        ("depth", {"depth": "colour"}, "is a colour picture"),
        ("depth", {"depth": "metres"}, "floating point numbers, which have no largest value"),
        ("semantic", {"semantic": "nothing"}, "is not a picture that can be read"),
        ("semantic", {"semantic": "x" * 300}, "no such file"),
        ("inpaint", {"image": "photo", "mask": "clear"}, "is transparent in places"),
        ("layout", {"layout": "deep"}, "is no JSON file"),
        ("layout", {"layout": "huge"}, "is not four numbers"),
        ("superres", {"image": "tiny"}, "has 20x20 pixels (width x height), and this denoiser takes 8x8"),
        ("inpaint", {"image": "photo"}, "no mask says where it is"),
        ("inpaint", {"image": "photo", "mask": "black"}, "has no white pixel"),
        ("inpaint", {"image": "photo", "mask": "size"}, "Give a mask of the picture's size"),
        ("inpaint", {"image": "tiny", "mask": "black"}, "Give one of at least that size"),
        ("label", {"image": "photo"}, "To start from the picture, say how far: strength=0.6"),
        ("superres", {"image": "tiny", "mask": "black"}, "this denoiser fills no hole; it takes image=low.png"),
        ("layout", {"layout": "nojson"}, "is no JSON file"),
        ("layout", {"layout": "empty"}, "no list of objects"),
        ("layout", {"layout": "noclass"}, "object 0 has no class and box"),
        ("layout", {"layout": "dog"}, "object 0: 'dog' is not a class"),
        ("layout", {"layout": "outside"}, "within the picture"),
        ("layout", {"layout": "nan"}, "is not four numbers"),
        ("layout", {"layout": "nosize"}, "lacks width and height"),
        ("layout", {"layout": "many"}, "has 3 objects, and this denoiser reads 2"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, kind: str, asked: dict[str, str], said: str) -> None:
    files = {word: value if word in ("label", "prompt") else wrong(tmp_path, value) for word, value in asked.items()}
    with pytest.raises(ConfigError) as error:
        given(kind, **files)
    text = str(error.value)
    assert said in text.replace(str(tmp_path), "") and "\n" not in text and text.endswith((".", "…", "'"))
