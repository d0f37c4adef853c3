"""What several test folders share."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests run side by side; threads that fight for two cores are ten times slower


@pytest.fixture
def shared_data() -> Path:
    """The folder with real photographs that lies beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real photographs at {folder}")
    return folder
