"""The object store's part in the engine process: loads an update from this node's file."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
)

from medr1_ray.weights.buckets import read_bucket
from medr1_ray.weights.engine.checked_loading import CheckedLoading, UpdateInfo
from medr1_ray.weights.transports.object_store import StagedUpdate, open_staged


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Empty: every update carries its own location."""


class StagedTransferEngine(CheckedLoading, WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads an update from this node's file. All digests are checked before the model changes."""

    init_info_cls = InitInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Part of vLLM's interface; there is no connection to open."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Check the update and load it.

        Raises:
            WeightDigestError: the bytes are not the learner's; the model is unchanged.
            ValueError: as `open_for`.
        """
        staged: StagedUpdate = pickle.loads(update_info.payload)
        buckets = open_staged(staged)
        self.open_for(staged.update)
        self.model.load_weights(named for bucket, buffer in buckets for named in read_bucket(buffer, bucket))

    def shutdown(self) -> None:
        """Part of vLLM's interface; nothing is held between updates."""
