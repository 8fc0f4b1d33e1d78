"""Connecting to a Ray cluster or starting a local one, and checking that the run fits on it."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading

import ray
from ray.exceptions import AuthenticationError

from medr1_ray.cluster.local import start_local
from medr1_ray.cluster.placement import require_possible
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config, shown_text

# A node of the same network answers in milliseconds.
_REACH_SECONDS = 5.0


def require_reachable(config: Config) -> None:
    """Check that the cluster to join answers, if there is one: Ray tries for two minutes.

    Raises:
        ValueError: nothing listens at its address, or that is the address of something else.
    """
    key, address = _address(config)
    given = shown_text(address)
    if address.startswith(("http://", "https://", "ray://")):
        raise ValueError(
            f"{key}={given!r} is not where a cluster is joined; give HOST:6379, as `ray start --head` prints it, or "
            "submit the command with `ray job submit`, which takes this address"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
        except OSError as error:
            raise ValueError(
                f"{key}={given!r} does not answer ({error}); start Ray there with `ray start --head`, or unset "
                f"{key} to run on this machine alone"
            ) from None


def connect(config: Config) -> None:
    """Join the cluster at `cluster.address` or, in a Ray job, RAY_ADDRESS; without either, start one on this machine.

    Raises:
        ValueError: the cluster cannot be joined; or the run does not fit on this machine, or on a cluster that cannot
            grow.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        _connect(config)
    finally:
        # Ray puts a handler of its own in place of the command's, which lets a run save before it ends.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(config: Config) -> None:
    key, address = _address(config)
    if address:
        require_reachable(config)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, AuthenticationError) as error:
            reason, given = str(error).strip().splitlines()[0], shown_text(address)
            raise ValueError(
                f"{key}={given!r} cannot be joined ({reason}); on the head `ray status` must show the cluster, with "
                "RAY_AUTH_MODE and ~/.ray/auth_token as here"
            ) from None
        require_possible(config)
        return
    # A local cluster cannot grow, so it starts with room for the most actors.
    _, most = config.rollout.actor_range
    needed = sum(demand.count * demand.cpus for demand in demands(config, most))
    # Actors on one machine take turns (generation, then the update), so their logical CPUs may exceed its cores.
    start_local(max(os.cpu_count() or 1, math.ceil(needed)))
    require_possible(config)


def _address(config: Config) -> tuple[str, str]:
    """Return where the address of the cluster to join comes from, and the address; empty to start a local cluster."""
    if config.cluster.address:
        return "cluster.address", config.cluster.address
    return "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "")
