"""Ports that are free until they are used."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from medr1_ray.cluster import ports


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the kernel says which ports it gives out."""
    monkeypatch.setattr(ports, "_RANGE", tmp_path / "range")
    return tmp_path / "range"


def test_it_is_none_that_the_kernel_gives_out(kernel: Path) -> None:
    kernel.write_text("20500\t60999\n")
    assert all(20_000 <= ports.free_port() < 20_500 for _ in range(50))


def test_it_is_none_at_which_somebody_listens(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.write_text("32768 60999")
    taken = ports.free_port()
    monkeypatch.setattr(ports, "_LOWEST", taken)
    kernel.write_text(f"{taken + 2} 60999")
    with socket.create_server(("", taken)):
        assert taken not in {ports.free_port() for _ in range(50)}


@pytest.mark.parametrize("given", ["1024 60999", None])
def test_where_the_kernel_gives_out_all_or_says_nothing_it_chooses(kernel: Path, given: str | None) -> None:
    if given is not None:
        kernel.write_text(given)
    with socket.create_server(("", ports.free_port())) as server:
        assert server.getsockname()[1] > 0
