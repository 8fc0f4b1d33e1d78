"""Connecting to a Ray cluster or starting a local one, and checking that the run fits on it."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from pathlib import Path

import ray

from medr1_ray.cluster.placement import require_possible
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config


def connect(config: Config) -> None:
    """Join the cluster at `cluster.address` or, in a Ray job, RAY_ADDRESS; without either, start one on this machine.

    Raises:
        ValueError: the run does not fit on this machine, or on a cluster that cannot grow.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        _connect(config)
    finally:
        # Ray puts a handler of its own in place of the command's, which lets a run save before it ends.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(config: Config) -> None:
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        require_possible(config)
        return
    # A local cluster cannot grow, so it starts with room for the most actors.
    _, most = config.rollout.actor_range
    needed = sum(demand.count * demand.cpus for demand in demands(config, most))
    # Actors on one machine take turns (generation, then the update), so their logical CPUs may exceed its cores.
    ray.init(
        # A new cluster, even if another one runs on this machine.
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(needed)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # Workers import this copy of the package, installed or not.
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )
    require_possible(config)
