"""NCCL in the engine process: vLLM's packed broadcast, with a digest of the bytes and a deadline."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.nccl_common import (
    NCCLWeightTransferInitInfo,
    worker_init_process_group,
)
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from medr1_ray.base.deadline import ended_by, within
from medr1_ray.weights.engine.checked_loading import CheckedLoading, UpdateInfo
from medr1_ray.weights.messages import WeightUpdate
from medr1_ray.weights.transports.nccl import ProvenStream, is_broken_off, stream_specs


@dataclass(kw_only=True)
class NcclInitInfo(NCCLWeightTransferInitInfo):
    """vLLM's, plus how long a call may wait for the other members."""

    deadline_seconds: float


class NcclTransferEngine(CheckedLoading, NCCLWeightTransferEngine):
    """vLLM's NCCL engine with our checks.

    The learner's stream ends with a digest over all of it. Chunks are loaded as they arrive, so a wrong digest is
    found only after the model has changed: the update then fails, and the actor serves nothing until one succeeds.
    """

    init_info_cls = NcclInitInfo

    def init_transfer_engine(self, init_info: NcclInitInfo) -> None:
        """Leave the previous group, if any, and join the new one.

        Raises TimeoutError when not all members join.
        """
        self.shutdown()
        # vLLM's own method does the same, but its rendezvous has no deadline, so it is not called.
        self._deadline_seconds = init_info.deadline_seconds
        self.packed = init_info.packed
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        self.packed_num_buffers = init_info.packed_num_buffers

        def on_own_device() -> Any:
            if self.device.type != "cpu":
                torch.accelerator.set_device_index(self.device)  # the current device is per thread
            return worker_init_process_group(init_info, self.parallel_config)

        self.model_update_group = within(
            init_info.deadline_seconds, "joining the weight group", on_own_device
        )

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Check the update's names, receive and load it, and check its bytes.

        Raises:
            RuntimeError: the engine has not joined a group, or another member died and the group has been ended.
            TimeoutError: the stream did not end in time; the group has been ended.
            WeightDigestError: the bytes are not the learner's.
            ValueError: as `open_for`.
        """
        if self.model_update_group is None:
            raise RuntimeError("the engine has not joined a weight group; the driver must let it join one first")
        update: WeightUpdate = pickle.loads(update_info.payload)
        # If this refuses the update, the learner's broadcast waits until its own deadline.
        self.open_for(update)
        specs = stream_specs(update)
        stream = ProvenStream(self.model.load_weights, update.version)
        what, group = f"receiving policy version {update.version}", self.model_update_group
        with ended_by(self._deadline_seconds, what, self.shutdown, lambda: is_broken_off(group)):
            # vLLM's receiver passes every chunk to `self.model.load_weights`, so the stream stands in for the model.
            model, self.model = self.model, _Receiving(stream)
            try:
                super().receive_weights(
                    NCCLWeightTransferUpdateInfo(
                        names=[spec.name for spec in specs],
                        dtype_names=[spec.dtype for spec in specs],
                        shapes=[list(spec.shape) for spec in specs],
                    )
                )
            finally:
                self.model = model
        stream.check()


@dataclass(frozen=True)
class _Receiving:
    """Stands in for the model while vLLM's engine receives."""

    stream: ProvenStream

    def load_weights(self, named_tensors: list[tuple[str, torch.Tensor]]) -> None:
        self.stream.take(named_tensors)
