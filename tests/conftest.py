"""What several test folders share."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = (
    "1"  # of the commands that tests start too: threads that fight for two cores are ten times slower
)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def shared_data() -> Path:
    """The folder with real photographs that lies beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real photographs at {folder}")
    return folder
