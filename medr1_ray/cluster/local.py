"""A Ray cluster of one run on this machine: it listens on loopback only, and its temporary files go with it."""

from __future__ import annotations

import atexit
import fcntl
import getpass
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services

LOOPBACK = "127.0.0.1"

_PREFIX = "medr1-"
# Of an address of a socket, which Linux limits, this much must be left for the names of vLLM's.
_LONGEST_FOLDER = 107 - len("/") - 36
_FRESH_SECONDS = 60


def start_local(cpus: int) -> None:
    """Start a new cluster with so many CPUs, even if another one runs on this machine."""
    with _on_loopback(), _out_of_reach_of_signals():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _environment()},
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take the loopback address for this node's: its processes then listen on that alone.

    Ray 2.60 has this for Windows and macOS only, and replaces a loopback address that it is given by another.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _out_of_reach_of_signals() -> Iterator[None]:
    """Let Ray start its processes in sessions of their own.

    A signal to the driver's process group, as `timeout` and some schedulers send it, would end them before the driver
    has saved. They end with the driver all the same: Ray asks the kernel for that.
    """

    class Apart(services.ConsolePopen):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, start_new_session=True, **settings)

    before = services.ConsolePopen
    services.ConsolePopen = Apart
    try:
        yield
    finally:
        services.ConsolePopen = before


def _environment() -> dict[str, str]:
    """Return the environment of the workers."""
    variables = {
        # Workers import this copy of the package, installed or not.
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "VLLM_HOST_IP": LOOPBACK,
    }
    if loopback := loopback_interface():
        # gloo would listen on the address of the machine's name.
        variables["GLOO_SOCKET_IFNAME"] = loopback
    folder = own_folder()
    if len(str(folder)) <= _LONGEST_FOLDER:
        # What compiling took minutes for must outlive the run; torch keeps it below the temporary folder.
        compiled = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
        variables |= {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(compiled)}
    ours = {"PYTHONPATH", "TMPDIR"}
    return {name: value if name in ours else os.environ.get(name, value) for name, value in variables.items()}


def loopback_interface() -> str | None:
    """Return the name of this machine's loopback interface, or None if it has another than Linux gives it."""
    return "lo" if any(name == "lo" for _, name in socket.if_nameindex()) else None


def own_folder() -> Path:
    """Return a new private folder, removed when this process ends.

    A driver has one for the temporary files of all its workers: they are killed and remove nothing, and each engine
    would leave its sockets. Folders of processes that were killed themselves are removed now, and when this process
    ends: one that started at once after another was killed finds its folder too young.
    """
    place = Path(tempfile.gettempdir())
    _remove_left(place)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    _locked(folder)
    atexit.register(_remove_left, place)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _remove_left(place: Path) -> None:
    """Remove the folders of processes that are gone; those in use have a lock, which goes with its process."""
    for left in place.glob(f"{_PREFIX}????????"):
        with suppress(OSError):
            # A younger one may not have its lock yet.
            if left.stat().st_uid == os.getuid() and time.time() - left.stat().st_mtime > _FRESH_SECONDS:
                lock = _locked(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int:
    """Lock a folder until its descriptor is closed or this process ends. Raises BlockingIOError if another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
