"""Pictures of 16 bits: from the file through shards to the batch without loss; what cannot be read in 16 is one error."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldmlab.data.batches import Batches, eight_bits, to_float
from ldmlab.data.bits import Deep, deep_png, opened, square
from ldmlab.data.encoding import Encoding
from ldmlab.data.folder import Folder, FolderLayout
from ldmlab.data.prepare import pack, verify
from ldmlab.data.shards import Shards
from ldmlab.data.transforms import center_crop
from ldmlab.errors import ConfigError, DataError
from ldmlab.metrics.reconstruction import ReconstructionError, highest_psnr, psnr, rounded, ssim


def pixels(number: int, channels: int, side: int = 16) -> np.ndarray:
    """uint16 [side, side, channels], all values about as likely."""
    return np.random.default_rng(number).integers(0, 65_536, (side, side, channels)).astype(np.uint16)


def read(content: bytes, channels: int) -> np.ndarray:
    found = opened(content, channels, 16)
    assert isinstance(found, Deep)
    return found.pixels_HWC


def saved(grey_HW: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(grey_HW).save(out, kind)
    return out.getvalue()


def colour_tiff(pixels_HW3: np.ndarray) -> bytes:
    """An uncompressed TIFF of 16 bits in RGB, by the letter of TIFF 6.0; Pillow writes none."""
    height, width, _ = pixels_HW3.shape
    depths, data = 8 + 2 + 9 * 12 + 4, pixels_HW3.astype("<u2").tobytes()
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, depths), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, depths + 6),
        (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    folder = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + folder + bytes(4) + struct.pack("<HHH", 16, 16, 16) + data


def test_every_value_is_read_as_it_was_written():
    grey = pixels(0, 1)
    for content in (saved(grey[..., 0], "PNG"), saved(grey[..., 0], "TIFF"), deep_png(grey)):
        assert np.array_equal(read(content, 1), grey) and np.array_equal(read(content, 3), np.repeat(grey, 3, axis=2))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(deep_png(grey)))), grey[..., 0])  # another reader
    big = Image.frombytes("I;16B", (16, 16), grey.astype(">u2").tobytes())
    out = io.BytesIO()
    big.save(out, "TIFF")
    assert np.array_equal(read(out.getvalue(), 1), grey)
    for channels in (3, 4):
        assert np.array_equal(read(deep_png(pixels(1, channels)), channels), pixels(1, channels))


def test_eight_bits_are_read_in_sixteen_without_loss():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    content = saved(image, "PNG")
    assert np.array_equal(read(content, 3), image.astype(np.uint16) * 257)
    assert torch.equal(to_float(torch.from_numpy(read(content, 3))[None]), to_float(torch.from_numpy(image)[None]))
    assert torch.equal(eight_bits(torch.from_numpy(read(content, 3))), torch.from_numpy(image))
    assert np.array_equal(read(content, 1)[..., 0], np.asarray(Image.fromarray(image).convert("L")) * np.uint16(257))


def test_all_levels_stay_apart_up_to_the_first_stage():
    level_1HW1 = torch.arange(65_536, dtype=torch.int32).to(torch.uint16).reshape(1, 256, 256, 1)
    x_1CHW = to_float(level_1HW1)
    assert (x_1CHW.flatten().diff() > 0).all() and x_1CHW.min() == -1 and x_1CHW.max() == 1
    assert torch.equal(rounded(x_1CHW, 16).flatten(), torch.arange(65_536, dtype=torch.int32))


def test_opacity_and_luma_as_with_eight_bits():
    rgba = pixels(2, 4)
    rgba[:8, :, 3], rgba[8:, :, 3] = 0, 65_535
    seen = read(deep_png(rgba), 3)
    assert (seen[:8] == 65_535).all() and np.array_equal(seen[8:], rgba[8:, :, :3])
    coarse = (rgba // 257 * 257).astype(np.uint16)  # what 8 bits can say
    luma = np.asarray(Image.fromarray((coarse[8:, :, :3] // 257).astype(np.uint8)).convert("L")).astype(int)
    assert (abs(read(deep_png(coarse), 1)[8:, :, 0] / 257 - luma) < 0.51).all()


@pytest.mark.parametrize("size", [(16, 16), (27, 21)])
def test_the_crop_is_that_of_eight_bits(size):
    image = np.random.default_rng(3).integers(
        60, 190, (*size, 3), dtype=np.uint8
    )  # Pillow clips between its two passes
    plain, found = Image.fromarray(image), Deep(image.astype(np.uint16) * 257)
    assert found.size == plain.size
    difference = np.abs(square(found, 16) / 257 - center_crop(plain, 16))
    assert difference.max() <= (0 if size == (16, 16) else 1.2)  # and rounds after each of them


def test_halving_is_the_exact_mean():
    deep = np.random.default_rng(4).integers(0, 65_536, (64, 80, 3)).astype(np.uint16)
    mean = deep.reshape(16, 4, 20, 4, 3).mean(axis=(1, 3))[:, 2:18]  # the square in the middle
    assert np.abs(square(Deep(deep), 16) - mean).max() <= 0.51


@pytest.fixture
def root(tmp_path) -> Path:
    """Grey png and tif, colours, colours with opacity, and one of 8 bits."""
    for n in range(8):
        kinds = [
            ("png", deep_png(pixels(n, 1))),
            ("tif", saved(pixels(n, 1)[..., 0], "TIFF")),
            ("png", deep_png(pixels(n, 3))),
        ]
        kinds.append(("png", deep_png(pixels(n, 4)) if n < 4 else saved(pixels(n, 3).astype(np.uint8), "PNG")))
        suffix, content = kinds[n % 4]
        (tmp_path / "in" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "ab"[n % 2] / f"{n}.{suffix}").write_bytes(content)
    return tmp_path / "in"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_from_files_through_shards_to_the_batch(root, tmp_path, channels):
    own = {"channels": channels, "bits": 16}
    data = Folder(str(root), 16, val_fraction=0.0, flip=False, **own)
    encoding, out = Encoding("png", 95, channels, 16), tmp_path / "out"
    manifest = pack(FolderLayout(str(root), 16, val_fraction=0.0).listing(), out, 16, encoding)
    assert verify(out, say=lambda line: None).plan == manifest.plan and manifest.encoding["bits"] == 16
    shards = Shards(str(out), 16, flip=False, **own)
    images = [{sample["image"].tobytes() for sample in one} for one in (data, shards)]
    assert images[0] == images[1] and len(images[0]) == 8
    assert data[0]["image"].dtype == np.uint16 and np.array_equal(data[0]["image"][..., 0], pixels(0, 1)[..., 0])
    batch = Batches(shards, 8, 8, 0, torch.device("cpu")).step(0)[0]["image"]
    back = rounded(batch, 16).permute(0, 2, 3, 1).numpy().astype(np.uint16)
    assert {image.tobytes() for image in back} == images[0]
    plain = Folder(str(root), 16, val_fraction=0.0, channels=channels)  # type: ignore[arg-type]
    assert plain[0]["image"].dtype == np.uint8 and plain.fingerprint() != data.fingerprint()


def test_what_has_no_sixteen_bits_is_named_before_anything_starts(root, tmp_path):
    (root / "a" / "colour.tif").write_bytes(colour_tiff(pixels(9, 3)))
    assert Folder(str(root), 16, val_fraction=0.0, cache=tmp_path)[0]["image"].shape == (
        16,
        16,
        3,
    )  # Pillow makes it 8 bits
    wrong = r"1 of 9 pictures in .*: a/colour.tif \(a TIFF of 16 bits in RGB, .* save it as PNG of 16 bits, or set data.bits=8\)"
    with pytest.raises(DataError, match=wrong):
        Folder(str(root), 16, val_fraction=0.0, bits=16, cache=tmp_path)
    (root / "a" / "colour.tif").unlink()
    (root / "b" / "float.tif").write_bytes(saved(np.zeros((16, 16), np.float32), "TIFF"))
    for bits in (8, 16):
        with pytest.raises(DataError, match=r"b/float.tif \(.*(floating point|32 bits in F)"):
            Folder(str(root), 16, val_fraction=0.0, bits=bits)  # type: ignore[arg-type]
    (root / "b" / "float.tif").write_bytes(saved(np.full((16, 16), 70_000, np.int32), "TIFF"))
    with pytest.raises(DataError, match=r"grey of 32 bits; save it with 16"):
        Folder(str(root), 16, val_fraction=0.0, bits=16)
    with pytest.raises(ConfigError, match=r"prepare.format=jpg keeps 8 bits of data.bits=16. Use prepare.format=png"):
        Encoding("jpg", 95, 3, 16)


def test_scores_count_levels_of_sixteen_bits():
    image = to_float(torch.from_numpy(pixels(4, 3))[None])
    near = rounded(image, 16)
    near[0, 0, 0, 0] += 1 if near[0, 0, 0, 0] < 65_535 else -1
    assert float(psnr(rounded(image, 16), near, bits=16)) == pytest.approx(highest_psnr(3, 16, 16, bits=16))
    far = torch.zeros_like(near), torch.full_like(near, 65_535)
    assert float(psnr(*far, bits=16)) == 0 and float(ssim(near, near, bits=16)) == pytest.approx(1)
    found = []
    for bits in (8, 16):
        gauge = ReconstructionError(bits=bits)
        gauge.update(image, image * 0.999)  # 8 bits see part of it
        found.append(gauge.compute(20, 0)["psnr"].value)
    mse = (0.001 * image / 2).square().mean()
    assert found[1] == pytest.approx(float(-10 * mse.log10()), abs=0.01) and abs(found[0] - found[1]) > 1
