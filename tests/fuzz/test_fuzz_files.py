"""Damaged and hostile files: each reader gives what is there or one UserError; no code of a file runs.

Files are cut, have bytes flipped, or get a piece replaced (by zeros, by noise, by a piece of themselves); headers, types and
shapes are exchanged.
"""

import io
import json
import os
import pickle
import random
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldmlab.data.folder import Folder
from ldmlab.data.manifest import parse_manifest
from ldmlab.data.prepare import prepare
from ldmlab.data.shards import Shards
from ldmlab.errors import UserError
from ldmlab.interop import denoisers, weights
from ldmlab.store.checkpoint import Checkpoints, load_tensors, save_tensors

CASES = int(os.environ.get("LDMLAB_FUZZ_FILES", "25"))
QUIET: Any = {
    "max_examples": CASES, "deadline": None, "database": None, "derandomize": True, "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip


def altered(content: bytes, seed: int) -> bytes:
    """Another content of one file: cut, flipped, replaced or repeated at a random place."""
    rng, size = random.Random(seed), len(content)
    start = rng.randrange(size)
    piece = min(rng.choice([1, 2, 16, 512, 4096]), size - start)
    kind = rng.randrange(6)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + bytes([content[start] ^ (1 << rng.randrange(8))]) + content[start + 1 :]
    filling = {2: bytes(piece), 3: rng.randbytes(piece), 4: content[:piece], 5: b"\xff" * piece}[kind]
    return content[:start] + filling + content[start + piece :]


def survives(read: Callable[[], object]) -> bool:
    """Whether the reader took it; a UserError of one line is the other good answer, anything else fails the test."""
    try:
        read()
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 4_000
        return False
    return True


def picture(number: int, kind: str = "PNG", side: int = 16) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


# ---- data ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One tar of six labelled pictures, as bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for n in range(6):
            for name, content in ((f"k{n:04d}.png", picture(n)), (f"k{n:04d}.cls", str(n % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@given(seed=st.integers(0, 2**32))
@settings(**QUIET)
def test_a_damaged_shard(seed: int, shards: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("shards")
    (root / "train-0000.tar").write_bytes(altered(shards, seed))
    (root / "classes.json").write_text('["a", "b"]')

    def read_all() -> None:
        data = Shards(str(root), 16, "train")
        for i in range(len(data)):
            assert data[i]["image"].shape == (16, 16, 3)

    survives(read_all)


@given(
    seed=st.integers(0, 2**32),
    name=st.sampled_from(["a.png", "b.jpg", "é ü.png", "-x.png", "a'b.png", "%s.png", ".png.png"]),
)
@settings(**QUIET)
def test_a_damaged_picture(seed: int, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("folder")
    for n in range(4):
        (root / f"whole{n}.png").write_bytes(picture(n))
    (root / name).write_bytes(altered(picture(9, "JPEG" if name.endswith("jpg") else "PNG"), seed))

    def read_all() -> None:
        data = Folder(str(root), 16, "train", val_fraction=0.0, max_unreadable=1)
        assert 4 <= len(data) <= 5
        for i in range(len(data)):
            assert data[i]["image"].shape == (16, 16, 3)

    assert survives(read_all)  # one picture may be unreadable, and no other is lost


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("pictures")
    for n in range(12):
        (root / f"{n}.png").write_bytes(picture(n))
    prepare(str(root), str(root / "out"), 16, val_fraction=0.3)
    return (root / "out" / "manifest.json").read_text()


def sound_or_refused(text: str) -> bool:
    """Whether the manifest was taken; then every number of its shards is one, and none points before the file."""

    def parse() -> None:
        for shards in parse_manifest(text, "here").splits.values():
            for shard in shards:
                numbers = [shard.bytes, *shard.offsets, *shard.sizes, *(shard.labels or [])]
                assert all(type(number) is int and number >= 0 for number in numbers)
                assert isinstance(shard.sha256, str)

    return survives(parse)


@given(seed=st.integers(0, 2**32))
@settings(**QUIET)
def test_a_damaged_manifest(seed: int, manifest: str) -> None:
    assert sound_or_refused(manifest)
    text = altered(manifest.encode(), seed).decode(errors="replace")
    sound_or_refused(text)


@given(data=st.data())
@settings(**QUIET)
def test_a_manifest_with_another_kind_of_value(data: st.DataObject, manifest: str) -> None:
    record = json.loads(manifest)
    key = data.draw(st.sampled_from(sorted(record)))
    record[key] = data.draw(st.sampled_from([None, 3, -1, "x", [], {}, [None], {"train": None}, {"train": [3]}, 1e400]))
    taken = sound_or_refused(json.dumps(record))
    assert not taken or key not in ("format", "splits") or record[key] == {}  # no splits at all: nothing to be wrong


@pytest.mark.timeout(20)
def test_a_pipe_with_the_name_of_a_picture_is_left_out(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    os.mkfifo(tmp_path / "x.jpg")
    assert len(Folder(str(tmp_path), 16, "train", val_fraction=0.0, max_unreadable=1)) == 4


# ---- weights -------------------------------------------------------------------------------------------------------------

TENSORS = {"network.a": torch.arange(12.0).reshape(3, 4), "scale": torch.ones(3), "shift": torch.zeros(3)}


def within_the_file_or_refused(file: Path) -> bool:
    """Whether all three readers took it; what a reader gives then has no more bytes than the file."""
    readers: list[Callable[[], Mapping[str, torch.Tensor]]] = [
        lambda: load_tensors(file), lambda: weights.read(file).tensors, lambda: denoisers.read(file).copies.raw,
    ]  # fmt: skip

    def within(read: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        assert sum(tensor.numel() * tensor.element_size() for tensor in read().values()) <= file.stat().st_size

    return all([survives(lambda read=read: within(read)) for read in readers])


@given(seed=st.integers(0, 2**32))
@settings(**QUIET)
def test_damaged_safetensors(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_tensors(file, TENSORS)
    assert within_the_file_or_refused(file)
    file.write_bytes(altered(file.read_bytes(), seed))
    within_the_file_or_refused(file)


@given(seed=st.integers(0, 2**32))
@settings(**QUIET)
def test_a_damaged_pickle(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("weights") / "model.ckpt"
    torch.save({"state_dict": TENSORS}, file)
    assert weights.read(file).tensors.keys() == {"network.a"}
    file.write_bytes(altered(file.read_bytes(), seed))
    survives(lambda: [tensor.sum() for tensor in weights.read(file).tensors.values()])
    survives(lambda: [tensor.sum() for tensor in denoisers.read(file).copies.raw.values()])


class Hostile:
    """What calls a function when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch.save"])
def test_no_code_of_a_file_runs(protocol: int, plain: bool, tmp_path: Path) -> None:
    file, mark = tmp_path / "model.ckpt", tmp_path / "was-run"
    found = {"state_dict": {**TENSORS, "x": Hostile(mark)}}
    if plain:
        file.write_bytes(pickle.dumps(found, protocol=protocol))
    else:
        torch.save(found, file, pickle_protocol=max(2, protocol))
    for read in (weights.read, denoisers.read):
        assert not survives(lambda read=read: read(file))
    assert not mark.exists()


@given(data=st.data())
@settings(**QUIET)
def test_headers_that_lie(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A header that says another type, shape or place than the bytes have."""
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_tensors(file, TENSORS)
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    entry = header["network.a"]
    truth = entry["data_offsets"]
    entry["dtype"] = data.draw(st.sampled_from(["F32", "F64", "BF16", "I8", "BOOL", "X", None]))
    entry["shape"] = data.draw(st.sampled_from([[3, 4], [12], [], [-3, -4], [10**12, 10**12], [0], None, "3"]))
    entry["data_offsets"] = data.draw(st.sampled_from([entry["data_offsets"], [0, 10**15], [48, 0], [-8, 40], None]))
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text), 0, 2**63, len(text) * 3]))
    file.write_bytes(struct.pack("<Q", length) + text + content[8 + size :])
    taken = within_the_file_or_refused(file)
    told = (entry["dtype"], entry["shape"], entry["data_offsets"], length)
    if told == ("F32", [3, 4], truth, len(text)):
        assert taken
    assert not taken or length == len(text)


@given(seed=st.integers(0, 2**32), which=st.sampled_from(["state.safetensors", "optimizers.pt", "progress.json"]))
@settings(**QUIET)
def test_a_damaged_checkpoint_gives_the_one_before(
    seed: int, which: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file of the newest generation is altered: what comes back is whole, and never the altered one."""
    folder = tmp_path_factory.mktemp("stage")
    checkpoints = Checkpoints(folder)
    for images in (8, 16):
        checkpoints.save(TENSORS, {"adam": {"lr": 1.0}}, {"images": images, "steps": 1, "seconds": 0.0})
    file = checkpoints.generations()[-1] / which
    content = file.read_bytes()
    file.write_bytes(altered(content, seed))
    saved = checkpoints.load(say=lambda text: None)
    assert saved is not None
    if which == "progress.json":  # a space for a space says the same
        assert saved.progress in [{"images": images, "steps": 1, "seconds": 0.0} for images in (8, 16)]
    elif file.read_bytes() != content:
        assert saved.progress["images"] == 8
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in TENSORS.items())
