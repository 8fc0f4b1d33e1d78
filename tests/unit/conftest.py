"""Of torch's threads: one for each process that runs unit tests."""

import sys


def pytest_runtest_setup() -> None:
    """Compute on one core: the models are small, and threads that wait for a busy core take ten times as long."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
