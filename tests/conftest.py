"""Fixtures that unit and integration tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data for tests, beside the repository and not part of it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        assert "CI" not in os.environ, f"{folder} is missing: CI must not skip what needs it"
        pytest.skip(f"{folder} is not here")
    return folder
