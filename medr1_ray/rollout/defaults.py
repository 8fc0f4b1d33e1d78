"""Sizes of an engine that its users must know as well: the pool that fills it, and the estimates of `--dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medr1_ray.config import Config

if TYPE_CHECKING:
    pass


KV_CACHE_BYTES_ON_CPU = 2**30


MAX_NUM_SEQS = 256


def sequences_at_once(config: Config) -> int:
    """Completions that an engine samples at the same time: more only wait in its queue."""
    return int(config.rollout.engine.get("max_num_seqs", MAX_NUM_SEQS))
