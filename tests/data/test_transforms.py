import io

import numpy as np
import pytest
from PIL import Image

from ldmlab.data.transforms import center_crop, read_rgb

RNG = np.random.default_rng(0)
SQUARE = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def stored(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def pixels(content: bytes) -> np.ndarray:
    picture = read_rgb(content)
    assert picture.mode == "RGB"
    return np.asarray(picture)


# what each EXIF orientation does to a picture that is stored upright turned (EXIF 2.32, tag 0x0112)
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_orientation_is_applied_exactly(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    content = stored(Image.fromarray(SQUARE), format, exif=exif, **options)
    assert np.array_equal(pixels(content), UPRIGHT[orientation](SQUARE))


def test_grey_and_1_bit_become_equal_channels():
    grey = SQUARE[..., 0]
    assert np.array_equal(pixels(stored(Image.fromarray(grey))), np.repeat(grey[..., None], 3, 2))
    bits = Image.fromarray(grey > 127)
    assert np.array_equal(pixels(stored(bits)), np.repeat(np.where(grey > 127, 255, 0)[..., None], 3, 2))


def test_16_bit_grey_is_scaled_not_clipped():
    grey = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    assert pixels(stored(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_palette_and_its_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    assert pixels(stored(picture))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert pixels(stored(picture, transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_alpha_is_composited_on_white():
    rgba = np.array([[[200, 0, 40, 255], [200, 0, 40, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    expected = [[200, 0, 40], [255, 255, 255], [204, 204, 204]]
    assert pixels(stored(Image.fromarray(rgba)))[0].tolist() == expected
    assert pixels(stored(Image.fromarray(rgba), "WEBP", lossless=True, exact=True))[0].tolist() == expected
    la = Image.fromarray(np.array([[[60, 255], [60, 0]]], dtype=np.uint8), "LA")
    assert pixels(stored(la))[0].tolist() == [[60] * 3, [255] * 3]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8))
    assert pixels(stored(keyed, transparency=(9, 9, 9)))[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_cmyk_jpeg():
    content = stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    assert abs(pixels(content).astype(int) - [255, 0, 0]).max() <= 3


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = stored(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


def test_a_cut_file_raises():
    content = stored(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(OSError):
        read_rgb(content[: len(content) // 2])


def halved(a: np.ndarray) -> np.ndarray:
    """Means of neighbours by hand, for even sides: along rows, then columns, each rounded half up as Pillow does."""
    wide = a.astype(np.int64)
    rows = (wide[:, ::2] + wide[:, 1::2] + 1) // 2
    return ((rows[::2] + rows[1::2] + 1) // 2).astype(np.uint8)


def test_crop_of_a_multiple_is_halving_and_cutting_by_hand():
    a = RNG.integers(0, 256, (64, 104, 3), dtype=np.uint8)  # 64 → 32 → 16: no bicubic step remains
    twice = halved(halved(a))
    assert twice.shape == (16, 26, 3)
    assert np.array_equal(center_crop(Image.fromarray(a), 16), twice[:, 5:21])


def test_crop_equals_the_rule_of_guided_diffusion():
    """Written out from the rule: box halves while the short side is at least twice the size, bicubic, centre."""
    for width, height, size in [(333, 250, 64), (91, 300, 32), (40, 50, 64), (64, 64, 64), (127, 128, 64)]:
        picture = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
        w, h, now = width, height, picture
        while min(w, h) >= 2 * size:
            w, h = w // 2, h // 2
            now = now.resize((w, h), Image.Resampling.BOX)
        w, h = round(w * (size / min(w, h))), round(h * (size / min(w, h)))
        now = now.resize((w, h), Image.Resampling.BICUBIC)
        x, y = (w - size) // 2, (h - size) // 2
        expected = np.asarray(now.crop((x, y, x + size, y + size)))
        assert np.array_equal(center_crop(picture, size), expected)
        assert expected.shape == (size, size, 3)


def test_a_picture_of_the_right_size_is_untouched():
    a = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(center_crop(Image.fromarray(a), 32), a)
