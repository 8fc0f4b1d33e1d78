"""A cluster on this machine listens on loopback only, and its temporary files go with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants, services

from medr1_ray.cluster import local
from tests.repository import REPOSITORY


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # That of a test is longer than a machine's.
    monkeypatch.setattr(local, "_LONGEST_FOLDER", 1000)
    monkeypatch.setattr(local.atexit, "register", lambda *_, **__: None)
    return tmp_path


@pytest.fixture
def started(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the workers of a cluster, and the address that Ray took for this node's."""
    found: dict[str, str] = {}

    def init(**settings: Any) -> None:
        found.update(settings["runtime_env"]["env_vars"], address=services.get_node_ip_address())

    monkeypatch.setattr(ray, "init", init)
    # An earlier test of this process may have a cluster, whose address Ray would give.
    monkeypatch.setattr(ray._private.worker, "_global_node", None)
    # torch sets the second one itself.
    for name in ("GLOO_SOCKET_IFNAME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_HOST_IP", "192.0.2.7")
    local.start_local(2)
    return found


def test_ray_and_what_it_starts_are_on_loopback(started: dict[str, str]) -> None:
    assert started["address"] == "127.0.0.1"
    assert started["GLOO_SOCKET_IFNAME"] == "lo"
    assert started["VLLM_HOST_IP"] == "192.0.2.7", "unless asked"
    assert ray_constants.ENABLE_RAY_CLUSTER, "clusters that are joined are others"


def test_workers_have_a_temporary_folder_and_compiled_code_stays(started: dict[str, str], temporary: Path) -> None:
    assert Path(started["TMPDIR"]).parent == temporary
    assert Path(started["TMPDIR"]).stat().st_mode & 0o777 == 0o700
    assert Path(started["TORCHINDUCTOR_CACHE_DIR"]).parent == temporary


def test_a_folder_too_long_for_sockets_is_not_given(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_LONGEST_FOLDER", len(str(temporary)))
    assert "TMPDIR" not in local._environment()


def test_the_folder_of_a_driver_that_was_killed_goes_with_the_next(temporary: Path) -> None:
    names = ("in_use__", "left____", "young___", "longer_than_ours")
    in_use, left, young, others = (temporary / f"medr1-{name}" for name in names)
    for folder in (in_use, left, young, others):
        folder.mkdir()
        (folder / "socket").touch()
        os.utime(folder, (0, 0 if folder != young else time.time()))
    lock = local._locked(in_use)
    local.own_folder()
    os.close(lock)
    assert not left.exists()
    assert all((folder / "socket").exists() for folder in (in_use, young, others))


def test_the_folder_goes_when_the_process_ends(tmp_path: Path) -> None:
    """With that of another process, which was too young to be taken for one that is gone when this one began."""
    (tmp_path / "medr1-young___").mkdir()
    program = "from medr1_ray.cluster import local; (local.own_folder() / 'socket').touch(); local._FRESH_SECONDS = -1"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
    assert list(tmp_path.glob("medr1-*")) == []
