"""Weights through CUDA IPC, where a learner rank and an engine share a GPU: the engine reads the rank's memory.

Every rank copies the parameters into flat buckets on its own GPU and exports each bucket once; an engine opens the
handle of its GPU. The buckets exist until the engines have loaded them, so a GPU holds the model once more until then.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from medr1_ray.weights.buckets import BUCKET_BYTES, packed_bucket, size_bytes
from medr1_ray.weights.digests import digest_of, update_digest
from medr1_ray.weights.messages import TensorSpec, WeightBucket, WeightUpdate
from medr1_ray.weights.protocol import WeightSource

Handles = dict[str, tuple[Any, ...]]
"""By GPU UUID: the arguments of torch's `rebuild_cuda_tensor` that open the bucket's tensor on that GPU."""


@dataclass(frozen=True)
class IpcPart:
    """One bucket of an update, for one `update_weights` call; bucket 0 opens the model."""

    update: WeightUpdate
    bucket: int


def cuda_handle(buffer: torch.Tensor) -> Handles:
    """Export a tensor's memory to the other processes of its GPU."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, arguments = reduce_tensor(buffer)
    # By UUID: Ray shows each process its own GPUs, so the same card may have different device numbers.
    return {str(torch.cuda.get_device_properties(buffer.device).uuid): arguments}


class IpcSender:
    """A learner rank's end. Every rank publishes the same update with the handles of its own GPU;
    `buckets.merge_updates` joins them."""

    def __init__(
        self,
        device: torch.device,
        bucket_bytes: int = BUCKET_BYTES,
        export: Callable[[torch.Tensor], Handles] = cuda_handle,
    ) -> None:
        self._device = device
        self._bucket_bytes = bucket_bytes
        self._export = export
        self._buffers: list[torch.Tensor] = []

    def publish(self, source: WeightSource, version: int, *, to_newcomers: bool) -> WeightUpdate | None:
        # Before the new buckets are allocated: otherwise the GPU would hold the model three times.
        self.release()
        # Frozen parameters too: an engine that slept has lost them with all others.
        buckets = (*self._fill(source, frozen=True), *self._fill(source, frozen=False))
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the engine's streams are not ordered after ours
        return WeightUpdate(version, buckets, update_digest(version, buckets), lasting=False)

    def send(self) -> None:
        """Nothing to do: the engines read the memory themselves."""

    def release(self) -> None:
        """Free the buckets."""
        self._buffers.clear()
        if self._device.type == "cuda":
            # Without this the blocks stay reserved until torch happens to notice that the engines have closed their
            # handles.
            torch.cuda.ipc_collect()

    def _fill(self, source: WeightSource, *, frozen: bool) -> list[WeightBucket]:
        tensors = source.tensors(frozen=frozen)
        buckets = []
        for specs in cut(source.specs(frozen=frozen), self._bucket_bytes):
            bucket = packed_bucket(specs, "", frozen=frozen)
            buffer = torch.empty(bucket.size_bytes, dtype=torch.uint8, device=self._device)
            views = []
            for spec in bucket.tensors:
                name, tensor = next(tensors)
                assert name == spec.name, f"{name} came where {spec.name} was declared"
                view = buffer[spec.offset : spec.offset + size_bytes(spec)].view(tensor.dtype).view(spec.shape)
                views.append((name, view.copy_(tensor)))
            # An exported handle does not keep the memory alive; this reference does, until `release`.
            self._buffers.append(buffer)
            buckets.append(replace(bucket, digest=digest_of(views), data=self._export(buffer)))
        assert next(tensors, None) is None  # exhausting the iterator also ends the last gathering
        return buckets


class IpcReceiver:
    """A rollout actor's end: one call of the engine's workers for each bucket."""

    @contextmanager
    def receive(self, update: WeightUpdate, held: frozenset[str]) -> Iterator[tuple[bytes, ...]]:
        yield tuple(pickle.dumps(IpcPart(update, i)) for i in range(len(update.buckets)))


def cut(specs: Sequence[TensorSpec], bucket_bytes: int) -> list[list[TensorSpec]]:
    """Runs of tensors of at most `bucket_bytes` each, in order; a larger tensor is alone."""
    cuts: list[list[TensorSpec]] = []
    room = 0
    for spec in specs:
        if not cuts or size_bytes(spec) > room:
            cuts.append([])
            room = bucket_bytes
        cuts[-1].append(spec)
        room -= size_bytes(spec)
    return cuts
