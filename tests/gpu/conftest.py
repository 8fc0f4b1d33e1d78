"""Checks for machines with GPUs, by `docs/gpu.md`; each is skipped where there are fewer than it needs."""

from __future__ import annotations

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu(count)` where there are fewer."""
    mark = item.get_closest_marker("gpu")
    needed = mark.args[0] if mark and mark.args else 1
    if mark and torch.cuda.device_count() < needed:
        pytest.skip(f"needs {needed} GPU(s), there are {torch.cuda.device_count()}")
