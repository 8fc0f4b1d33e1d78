"""Ray: joining or starting a cluster, and whether the run fits on it."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import ray

from medr1_ray.config import Config
from medr1_ray.demand import demands


def connect(config: Config) -> None:
    """Join the cluster of `cluster.address` or of the job (RAY_ADDRESS); else start one on this machine.

    A cluster that is joined may still grow: what does not fit there fails at `cluster.placement_timeout_seconds`.

    Raises:
        ValueError: this machine has fewer GPUs than the run asks for.
    """
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return
    needed = sum(demand.count * demand.cpus for demand in demands(config))
    # Actors of one machine take turns (generation, then the update), so that their logical CPUs may exceed its cores.
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(needed)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    gpus_there = ray.cluster_resources().get("GPU", 0.0)
    gpus_needed = sum(demand.count * demand.gpus for demand in demands(config))
    if gpus_needed > gpus_there:
        asked = "; ".join(f"{d.count} x {d.name}: {d.gpus:g} GPU" for d in demands(config) if d.gpus)
        raise ValueError(
            f"the run asks for {gpus_needed:g} GPUs ({asked}), but this machine has {gpus_there:g}. Lower "
            "rollout.actors, learner.world_size, rollout.gpus_per_actor or learner.gpus_per_rank, or give "
            "cluster.address"
        )
