"""Connecting to a Ray cluster or starting a local one, and checking that the run fits on it."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading

import ray
from ray.exceptions import AuthenticationError

from medr1_ray.cluster.address import cluster_address, require_reachable
from medr1_ray.cluster.local import start_local
from medr1_ray.cluster.placement import require_possible
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config, shown_text


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
    key, address = cluster_address(config)
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
