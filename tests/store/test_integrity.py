"""What was sealed is what is used: each altered file is named, at the cost of a look at its size, times and inode."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmlab.errors import DataError
from ldmlab.store import integrity
from ldmlab.store.checkpoint import Checkpoints, save_tensors
from ldmlab.store.files import atomic, read_array, read_arrays, write_json
from ldmlab.store.store import Address, Store, altered_id

FILES = {
    "weights.safetensors": b"w" * 5000,
    "scores.json": b"{}\n",
    "snapshots/000000000008/ema.safetensors": b"e" * 100,
}


def flip(file: Path, at: int | None = None) -> None:
    """Change one bit in place: the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    file.write_bytes(content)


def make(root: Path, **options: object) -> tuple[Store, Address, Path]:
    store, at = Store(root), Address("denoiser", "unet", 1, dict(options))
    with store.building(at) as folder:
        for name, content in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        store.seal(at, 1.0)
    return store, at, folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to be hashed, in order."""
    names: list[str] = []
    real = integrity.sha256_file
    monkeypatch.setattr(integrity, "sha256_file", lambda path: (names.append(path.name), real(path))[1])
    return names


def test_a_sealed_stage_is_not_read_again_by_this_or_the_next_command(tmp_path: Path, hashed: list[str]) -> None:
    store, at, _ = make(tmp_path)
    hashed.clear()
    assert store.finished(at) and Store(tmp_path).finished(at) and hashed == []
    assert set(store.verified(at)) == set(FILES)


def test_only_what_changed_is_read_again(tmp_path: Path, hashed: list[str]) -> None:
    store, at, folder = make(tmp_path)
    hashed.clear()
    content = (folder / "scores.json").read_bytes()
    (folder / "scores.json").write_bytes(content)  # rewritten with the same content: not altered
    integrity.settle([folder / "scores.json"])
    assert store.finished(at) and store.finished(at) and Store(tmp_path).finished(at) and hashed == ["scores.json"]


@pytest.mark.parametrize("name", [*FILES, "done.json"])
@pytest.mark.parametrize("same_times", [False, True])
def test_one_bit_is_noticed_and_the_file_named(tmp_path: Path, name: str, same_times: bool) -> None:
    _, at, folder = make(tmp_path)
    state = (folder / name).stat()
    flip(folder / name)
    if same_times:  # as a tool does that restores times; the inode's own change time cannot be set
        os.utime(folder / name, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(DataError, match=f"{name} (was altered|is damaged)") as caught:
        Store(tmp_path).finished(at)
    told = str(caught.value)
    assert "\n" not in told and "denoiser" in told and f"emove {folder}" in told.replace("its folder", str(folder))
    assert name == "done.json" or "verify=false" in told


def test_a_file_replaced_by_another_of_equal_size_and_times(tmp_path: Path) -> None:
    _, at, folder = make(tmp_path)
    state = (folder / "scores.json").stat()
    (folder / ".other").write_bytes(b"[]\n")
    os.replace(folder / ".other", folder / "scores.json")
    os.utime(folder / "scores.json", ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(DataError, match=r"scores\.json was altered"):
        Store(tmp_path).finished(at)


def test_large_files_are_compared_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    monkeypatch.setattr(integrity, "BLOCK", 1024)
    _, at, folder = make(tmp_path)
    entry = json.loads((folder / "done.json").read_text())["files"]["weights.safetensors"]
    assert len(entry["blocks"]) == 5 and entry["sha256"] == Store(tmp_path).verified(at)["weights.safetensors"]
    (tmp_path / ".verified" / f"denoiser-{at.id}.json").unlink()
    hashed.clear()
    assert Store(tmp_path).verified(at)["weights.safetensors"] == entry["sha256"]
    assert "weights.safetensors" not in hashed  # its blocks were enough
    for byte in (0, 1023, 1024, 4999):
        flip(folder / "weights.safetensors", byte)
        with pytest.raises(DataError, match=r"weights\.safetensors was altered"):
            Store(tmp_path).finished(at)
        flip(folder / "weights.safetensors", byte)
        assert Store(tmp_path).finished(at)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 3}', b'{"weights.safetensors": [[1], "0"]}', b"\xff"])
def test_a_damaged_memory_is_made_again(tmp_path: Path, content: bytes) -> None:
    _, at, folder = make(tmp_path)
    (tmp_path / ".verified" / f"denoiser-{at.id}.json").write_bytes(content)
    assert Store(tmp_path).finished(at)
    flip(folder / "weights.safetensors")
    with pytest.raises(DataError, match="was altered"):
        Store(tmp_path).finished(at)


def test_with_verify_false_an_altered_file_makes_other_ids_and_the_card_says_so(tmp_path: Path) -> None:
    _, at, folder = make(tmp_path)
    store = Store(tmp_path, verify=False)
    assert store.alterations(at) == {} and store.upstream_id(at) == at.id == Store(tmp_path).upstream_id(at)
    flip(folder / "weights.safetensors")
    (folder / "scores.json").write_bytes(b"{} and more")  # another size
    store = Store(tmp_path, verify=False)
    altered = store.alterations(at)
    assert set(altered) == {"weights.safetensors", "scores.json"} and store.finished(at)
    assert altered["weights.safetensors"] == integrity.sha256_file(folder / "weights.safetensors")
    text = store.upstream_id(at)
    assert text == altered_id(at.id, altered) and text.startswith(f"{at.id}+") and len(text) == len(at.id) + 9
    assert store.upstream_id(folder) == text  # by its folder, as a run names another run's stage
    samples = Address("samples", "ddim", 1, {}, {"denoiser": text})
    scores = Address("scores", "shapes", 1, {}, {"samples": store.upstream_id(samples)})
    assert samples.id != Address("samples", "ddim", 1, {}, {"denoiser": at.id}).id
    for below in (samples, scores):
        assert store.altered_upstream(below) == {f"denoiser/unet-{at.id}": altered}
    assert Store(tmp_path).altered_upstream(samples) == {}
    (folder / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="is missing"):
        store.finished(at)


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": []}', '{"files": {}}', "", "3", "null", "{"])
def test_a_seal_that_is_none(tmp_path: Path, content: str) -> None:
    store, at, folder = make(tmp_path)
    (folder / "done.json").write_text(content)
    with pytest.raises(DataError, match=r"done\.json (was altered|is damaged).*[Rr]emove") as caught:
        store.done(at)
    assert "\n" not in str(caught.value)


def test_a_seal_of_another_stage_is_refused(tmp_path: Path) -> None:
    _, _, other = make(tmp_path, width=1)
    store, at, folder = make(tmp_path, width=2)
    (folder / "done.json").write_bytes((other / "done.json").read_bytes())
    with pytest.raises(DataError, match=r"done\.json was altered"):
        store.finished(at)


# ---- places that cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", " ", "{tmp}/file", "{tmp}/file/below", "/" + "x" * 5000, "a\0b"])
def test_a_store_that_cannot_be_one(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"store=.*Name") as caught:
        Store(root.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a small disk of one's own needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_store_is_read_and_what_is_new_is_refused(mounted: Path) -> None:
    _, at, _ = make(mounted)
    (mounted / ".verified" / f"denoiser-{at.id}.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    store = Store(mounted)
    assert store.finished(at) and not store.writable
    with pytest.raises(DataError, match="cannot be written: it is read-only"), store.building(Address("a", "b", 1, {})):
        pass
    with pytest.raises(DataError, match="cannot be written: it is read-only"):
        write_json(mounted / "x.json", 1)


def test_a_full_disk_is_one_sentence_whoever_writes(mounted: Path) -> None:
    large = torch.zeros(600_000)
    with pytest.raises(DataError, match="the disk is full"), atomic(mounted / "a") as beside:
        beside.write_bytes(b"0" * 2_000_000)
    with pytest.raises(DataError, match="the disk is full"), atomic(mounted / "a") as beside:
        save_tensors(beside, {"a": large})
    with pytest.raises(DataError, match="the disk is full"), atomic(mounted / "a") as beside, beside.open("wb") as file:
        np.save(file, large.numpy())
    for tensors, optimizers in (({"a": large}, {}), ({"a": large[:9]}, {"a": {"state": {0: {"exp_avg": large}}}})):
        with pytest.raises(DataError, match="the disk is full"):
            Checkpoints(mounted).save(tensors, optimizers, {"images": 1})
        assert not Checkpoints(mounted).generations()
    assert not (mounted / "a").exists()


def test_a_full_disk_without_the_right_to_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"x\.json cannot be written: the disk is full"):
        write_json(tmp_path / "x.json", 1)
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_kind_keeps_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a"):
        _ = 1 / 0


# ---- readers ---------------------------------------------------------------------------------------------------------------


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.arange(1000.0))
    np.save(tmp_path / "a.npy", np.arange(1000.0))
    assert read_arrays(tmp_path / "a.npz")["features"][3] == 3 == read_array(tmp_path / "a.npy")[3]
    for name, read in (("a.npz", read_arrays), ("a.npy", read_array)):
        whole = (tmp_path / name).read_bytes()
        for damage in (b"", whole[:7], whole[:100], whole[: len(whole) // 2], b"x" * len(whole), b"\x80\x04K\x01."):
            (tmp_path / name).write_bytes(damage)
            with pytest.raises(DataError, match=rf"{name} is damaged"):
                read(tmp_path / name)
        (tmp_path / name).unlink()
        with pytest.raises(DataError, match=rf"{name} is missing"):
            read(tmp_path / name)
