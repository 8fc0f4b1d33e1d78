"""Of torch's threads, one for each process that runs unit tests; and a disk that can be full."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.files import small_disk


def pytest_runtest_setup() -> None:
    """Compute on one core: the models are small, and threads that wait for a busy core take ten times as long."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    try:
        with small_disk(tmp_path / "disk", 2**20) as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(f"no disk may be mounted here: {error}")
