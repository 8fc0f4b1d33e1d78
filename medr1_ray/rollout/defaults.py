"""What the driver must know of an engine besides its actor: its settings, and sizes that others plan with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medr1_ray.base.shared_file import SharedFile
from medr1_ray.config import ClusterSettings, Config, ModelSettings, RolloutSettings

KV_CACHE_BYTES_ON_CPU = 2**30
# Not left to vLLM's default, because the pool plans with it.
MAX_NUM_SEQS = 256
# An engine goes on with them until the driver has seen its last answer. Few, because others cannot get them any more.
GROUPS_AHEAD = 4


@dataclass(frozen=True)
class EngineSettings:
    """The sections of the settings that a rollout actor reads.

    `seed` is `train.seed`; `logs` is the folder that the actor's output goes to; `files` are those of the driver that
    the actor's node must see, none where it runs on the driver's own.
    """

    model: ModelSettings
    rollout: RolloutSettings
    cluster: ClusterSettings
    seed: int
    logs: Path
    files: tuple[SharedFile, ...] = ()

    @classmethod
    def of(cls, config: Config, files: tuple[SharedFile, ...] = ()) -> EngineSettings:
        return cls(config.model, config.rollout, config.cluster, config.train.seed, config.run.dir / "logs", files)


def sequences_at_once(rollout: RolloutSettings) -> int:
    """Completions that an engine samples at the same time; more would only wait in its queue."""
    return int(rollout.engine.get("max_num_seqs", MAX_NUM_SEQS))
