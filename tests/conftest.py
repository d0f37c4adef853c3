"""What several test folders share."""

from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Path:
    """The folder with real photographs that lies beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real photographs at {folder}")
    return folder
