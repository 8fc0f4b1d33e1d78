"""Fixtures that unit and integration tests share."""

import os
from pathlib import Path

import pytest

from tests.repository import REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data for tests, beside the repository and not part of it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        assert "CI" not in os.environ, f"{folder} is missing: CI must not skip what needs it"
        pytest.skip(f"{folder} is not here")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes long and mostly waits: next to it the other process has both cores."""
    items.sort(key=lambda item: item.path.name != "test_elastic.py")  # stable: all others keep their order
