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


@pytest.hookimpl(trylast=True)  # when -m has chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, in each worker's share: xdist deals the list out in equal pieces, and who is done takes from the
    end of another's piece, where short tests then are, of files that are cheap to begin twice.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = [tests for tests in files.values() if any(test.get_closest_marker("slow") for test in tests)]
    rest = [test for tests in files.values() if tests not in slow for test in tests]
    shares = [[test for tests in slow[n::workers] for test in tests] for n in range(workers)]
    size = -(-len(items) // workers)
    for share in shares:
        more = max(0, size - len(share))
        share += rest[:more]
        del rest[:more]
    items[:] = [test for share in shares for test in share] + rest


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
