"""Two generations, each whole or not there; a damaged one is named and the one before is used."""

from pathlib import Path

import pytest
import torch

from ldmlab.errors import DataError, WeightsError
from ldmlab.store.checkpoint import Checkpoints, load_tensors, save_tensors


def save(checkpoints: Checkpoints, images: int) -> Path:
    tensors = {"a/w": torch.full((3,), float(images)), "ema.a/w": torch.zeros(2)}
    optimizers = {
        "a": {"state": {0: {"step": torch.tensor(float(images))}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    }
    return checkpoints.save(tensors, optimizers, {"images": images, "steps": images // 2, "seconds": 1.0})


def test_keeps_two_and_loads_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for images in (2, 4, 6):
        save(checkpoints, images)
    assert [p.name for p in checkpoints.generations()] == ["000000000004", "000000000006"]
    saved = checkpoints.load()
    assert saved is not None and saved.progress == {"images": 6, "steps": 3, "seconds": 1.0}
    assert torch.equal(saved.tensors["a/w"], torch.full((3,), 6.0))
    assert saved.optimizers["a"]["param_groups"] == [{"lr": 0.1, "params": [0]}]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "progress"])
def test_damaged_newest_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 2)
    newest = save(checkpoints, 4)
    file = newest / ("progress.json" if damage == "progress" else "state.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-3])
    elif damage == "progress":
        file.write_text("{")
    else:
        file.unlink()
    said: list[str] = []
    saved = checkpoints.load(said.append)
    assert saved is not None and saved.progress["images"] == 2
    assert len(said) == 1 and str(newest) in said[0] and "damaged" in said[0]


def test_none_whole_is_an_error_and_not_a_silent_new_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (save(checkpoints, 2) / "optimizers.pt").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 checkpoints"):
        checkpoints.load(lambda text: None)


def test_rests_of_a_killed_writer_are_no_generation(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 2)
    rest = checkpoints.folder / ".writing-abc"
    rest.mkdir()
    (rest / "state.safetensors").write_bytes(b"half")
    saved = checkpoints.load()
    assert saved is not None and saved.progress["images"] == 2
    save(checkpoints, 4)
    assert not rest.exists()


def test_weights_files(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"b": torch.arange(6.0).reshape(2, 3).t(), "a": torch.ones(1)})
    assert torch.equal(load_tensors(path)["b"], torch.arange(6.0).reshape(2, 3).t())
    with pytest.raises(WeightsError, match="missing"):
        load_tensors(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="damaged"):
        load_tensors(path)
