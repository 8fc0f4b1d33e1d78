"""Ray: joining or starting a cluster, and whether the run fits on it."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import ray

from medr1_ray.cluster.placement import require_possible
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config


def connect(config: Config) -> None:
    """Join the cluster of `cluster.address` or of the job (RAY_ADDRESS); else start one on this machine.

    Raises:
        ValueError: the run cannot fit this machine, or a cluster that does not grow.
    """
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        require_possible(config)
        return
    _, most = config.rollout.actor_range
    needed = sum(demand.count * demand.cpus for demand in demands(config, most))
    # Actors of one machine take turns (generation, then the update), so that their logical CPUs may exceed its cores.
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(needed)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )
    require_possible(config)
