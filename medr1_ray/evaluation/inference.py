"""Rollout actors without a learner: what evaluating and answering run on, one set of engines for any number of models.

Consumes prompts and checkpoints of one shape, produces groups and likelihoods. A checkpoint goes into the running
engines by the training's own weight sync, so that the next model costs seconds and no start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from medr1_ray.config import Config
from medr1_ray.model.checkpoint_files import checkpoint_tensors, require_checkpoint
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.shared_actors import open_engines
from medr1_ray.weights.buckets import BUCKET_BYTES, fill_buckets
from medr1_ray.weights.digests import update_digest
from medr1_ray.weights.messages import WeightUpdate


class Inference:
    """A pool of engines that serves one checkpoint at a time, the one that was loaded last."""

    def __init__(self, pool: RolloutPool) -> None:
        self.pool = pool
        self._version = 0

    def load(self, checkpoint: Path) -> None:
        """Bring a checkpoint to every engine.

        Raises:
            ValueError: the folder is no checkpoint (`require_checkpoint`).
            RuntimeError: its parameters do not fit the engines' model, or an engine failed.
        """
        require_checkpoint(checkpoint)
        self._version += 1
        buckets = fill_buckets(checkpoint_tensors(checkpoint), BUCKET_BYTES, ray.put)
        self.pool.load_weights(WeightUpdate(self._version, buckets, update_digest(self._version, buckets)))


@contextmanager
def open_inference(config: Config) -> Iterator[Inference]:
    """Engines of `config.model`'s shape, started and holding no weights yet; everything is ended on leaving.

    Raises:
        ValueError: this machine has fewer GPUs than the engines ask for.
        RuntimeError: an actor did not start within `cluster.start_timeout_seconds`.
    """
    with open_engines(config) as engines:
        ledger = Ledger(time.monotonic)
        reward_actors = list(engines.reward_actors.values())
        yield Inference(RolloutPool(config, engines.fleet, reward_actors, engines.calls, None, ledger))
