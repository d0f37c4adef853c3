"""What several test folders share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = (
    "1"  # of the commands that tests start too: threads that fight for two cores are ten times slower
)

import pytest
import torch

torch.set_num_threads(1)
gc.set_threshold(20_000)  # configurations are many small objects: looking through them every 700 costs a twentieth


@pytest.fixture
def shared_data() -> Path:
    """The folder with real photographs that lies beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real photographs at {folder}")
    return folder


@pytest.fixture(autouse=True)
def environment_kept() -> Iterator[None]:
    """A test that leaves one of our variables behind changes what the commands of later tests do."""
    names = [name for name in os.environ if name.startswith("LDMLAB_")]
    before = {name: os.environ[name] for name in names}
    yield
    after = {name: value for name, value in os.environ.items() if name.startswith("LDMLAB_")}
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert after == before, f"the test left its variables in the environment: {after} in place of {before}"
