"""CUDA IPC in the engine process: vLLM's engine for packed buckets, each verified before it is loaded."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)

from medr1_ray.weights.buckets import size_bytes
from medr1_ray.weights.digests import WeightDigestError, digest_of
from medr1_ray.weights.engine.checked_loading import CheckedLoading, UpdateInfo
from medr1_ray.weights.messages import WeightBucket
from medr1_ray.weights.transports.ipc import IpcPart


class IpcTransferEngine(CheckedLoading, IPCWeightTransferEngine):
    """vLLM's IPC engine with our checks. A bucket is loaded only if its bytes are those that the learner sent."""

    init_info_cls = IPCWeightTransferInitInfo

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        # vLLM sets this in its handshake with the trainer, which does not take place here.
        self.packed = True

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Check and load one bucket; the first of an update also checks the names of all.

        Raises:
            WeightDigestError: the bucket's bytes are not the learner's; it is not loaded.
            ValueError: as `open_for`, or the learner has no rank on this GPU.
        """
        part: IpcPart = pickle.loads(update_info.payload)
        bucket = part.update.buckets[part.bucket]
        # The driver sends the buckets of an update in order.
        if part.bucket == 0:
            self.open_for(part.update)
        # vLLM's receiver passes the bucket's tensors to `self.model.load_weights`, so the check stands in for the
        # model.
        model, self.model = self.model, _Verifying(self.model, bucket, part.update.version)
        try:
            super().receive_weights(
                IPCWeightTransferUpdateInfo(
                    names=[spec.name for spec in bucket.tensors],
                    dtype_names=[spec.dtype for spec in bucket.tensors],
                    shapes=[list(spec.shape) for spec in bucket.tensors],
                    ipc_handles=bucket.data,
                    tensor_sizes=[size_bytes(spec) for spec in bucket.tensors],
                )
            )
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        """As in the base; also releases the learner's memory."""
        super().finish_weight_update()
        # vLLM does this in its own `finish_weight_update`, which `CheckedLoading` replaces.
        self._packed_importer.close()

    def abandon(self) -> None:
        """As in the base; also releases the learner's memory."""
        super().abandon()
        self._packed_importer.close()


@dataclass(frozen=True)
class _Verifying:
    """Stands in for the model while vLLM's engine receives a bucket; loads it once its digest is right."""

    model: Any
    bucket: WeightBucket
    version: int

    def load_weights(self, named_tensors: list[tuple[str, torch.Tensor]]) -> None:
        found = digest_of(named_tensors)
        if found != self.bucket.digest:
            raise WeightDigestError(
                f"policy version {self.version}: a bucket read from the learner's memory has digest {found}, the "
                f"learner sent {self.bucket.digest}; it was not loaded"
            )
        self.model.load_weights(named_tensors)
