"""Rollout actors without a learner, for evaluating and answering: one set of engines serves several models in turn.

Takes prompts and checkpoints of one model shape, produces groups and likelihoods. Running engines load a checkpoint
through the weight sync of training, so that changing the model takes seconds and starts no engine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from medr1_ray.base.signs_of_life import still
from medr1_ray.config import Config
from medr1_ray.evaluation.devices import describe_engines
from medr1_ray.model.checkpoint_files import checkpoint_tensors
from medr1_ray.model.folder.files import require_checkpoint
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.shared_actors import open_engines
from medr1_ray.weights.buckets import BUCKET_BYTES, fill_buckets
from medr1_ray.weights.digests import update_digest
from medr1_ray.weights.messages import WeightUpdate


class Inference:
    """A pool of engines that serves one checkpoint at a time, the one loaded last."""

    def __init__(self, pool: RolloutPool) -> None:
        self.pool = pool
        self._version = 0

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint into every engine.

        Raises:
            ValueError: the folder is not a checkpoint (`require_checkpoint`).
            RuntimeError: its parameters do not fit the engines' model, or an engine failed.
        """
        require_checkpoint(checkpoint)
        # Engines refuse a version older than the one they hold.
        self._version += 1
        with still(f"loading {checkpoint} into the engines"):
            buckets = fill_buckets(checkpoint_tensors(checkpoint), BUCKET_BYTES, ray.put)
            self.pool.load_weights(WeightUpdate(self._version, buckets, update_digest(self._version, buckets)))


@contextmanager
def open_inference(config: Config) -> Iterator[Inference]:
    """Start engines for models of the shape of `config.model`, without weights; on exit, end everything.

    Raises:
        ValueError: this machine has fewer GPUs than the engines ask for.
        RuntimeError: an actor did not start within `cluster.start_timeout_seconds`.
    """
    print(describe_engines(config), file=sys.stderr)
    with open_engines(config) as engines:
        ledger = Ledger(time.monotonic)
        yield Inference(RolloutPool(config, engines.rollout_actors, engines.reward_actors, None, ledger))
