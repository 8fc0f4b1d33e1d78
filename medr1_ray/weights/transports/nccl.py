"""Weights by NCCL broadcast, from GPU to GPU: the learner's rank 0 is rank 0 of a group, the engines' workers follow.

    rank 0: learner   ranks 1, 2: engine A (tensor-parallel 2)   rank 3: engine B (1)   ranks 4-7: engine C (4)

Both ends are vLLM's own (`NCCLTrainerWeightTransferEngine`, `NCCLWeightTransferEngine`): tensors are packed into
chunks, whose bounds each side computes from the same names and shapes. This package adds a source that knows ZeRO-3, a
digest at the end of the stream, a rank offset per engine, deadlines, a quick end where a member dies, and a new group
when the members change.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from medr1_ray.base.deadline import ended_by, within
from medr1_ray.weights.buckets import BUCKET_BYTES, packed_bucket
from medr1_ray.weights.digests import StreamDigest, WeightDigestError, digest_of, update_digest
from medr1_ray.weights.messages import TensorSpec, WeightBucket, WeightGroup, WeightUpdate
from medr1_ray.weights.protocol import WeightSource

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import WeightSource as VllmSource

DIGEST_NAME = "medr1_ray.stream_digest"
DIGEST_BYTES = 16
_BROKEN_OFF = "medr1_ray/broken_off"
_STORE_TIMEOUT = timedelta(seconds=2)
_DIGEST_SPEC = TensorSpec(DIGEST_NAME, "uint8", (DIGEST_BYTES,), 0)


def stream_specs(update: WeightUpdate) -> list[TensorSpec]:
    """The tensors of a broadcast in their order, the digest last."""
    sent = [spec for bucket in update.buckets if bucket.sent for spec in bucket.tensors]
    return [*sent, _DIGEST_SPEC]


def break_off(address: str) -> None:
    """End the broadcast of the group that met at `address`, in all its members, within a second or so.

    A member's death leaves the others waiting; whoever hears of it first tells them, through the store of the group's
    rendezvous, which rank 0 keeps. Where that cannot be reached they notice it themselves.
    """
    host, port = address.rsplit(":", 1)
    with suppress(RuntimeError):
        store = TCPStore(host, int(port), is_master=False, timeout=_STORE_TIMEOUT)
        store.set(_BROKEN_OFF, "1")


def is_broken_off(group: Any) -> bool:
    """Whether `break_off` was called for this communicator's group, or rank 0 has died and the store with it."""
    if group is None:  # ranks of the learner that only gather have none
        return False
    try:
        return bool(group.group.store.check([_BROKEN_OFF]))
    except RuntimeError:
        return True


class ProvenStream:
    """Passes a stream's tensors to `load` and checks them against the digest at its end."""

    def __init__(self, load: Callable[[list[tuple[str, torch.Tensor]]], Any], version: int) -> None:
        self._load = load
        self._version = version
        self._found = StreamDigest()
        self._sent: torch.Tensor | None = None

    def take(self, named_tensors: list[tuple[str, torch.Tensor]]) -> None:
        """Take the next chunk."""
        weights = [(name, tensor) for name, tensor in named_tensors if name != DIGEST_NAME]
        for name, tensor in weights:
            self._found.add(name, tensor)
        # The digest is the last tensor of the stream, so what earlier chunks leave here (None) is replaced.
        self._sent = next((tensor for name, tensor in named_tensors if name == DIGEST_NAME), None)
        # The last chunk may hold the digest alone.
        if weights:
            self._load(weights)

    def check(self) -> None:
        """Raises WeightDigestError unless the stream was what the learner sent."""
        found = self._found.digest().hex()
        sent = bytes(self._sent.tolist()).hex() if self._sent is not None else "none"
        if found != sent:
            raise WeightDigestError(
                f"policy version {self._version}: the broadcast received has digest {found}, the learner sent {sent}"
            )


class NcclSender:
    """A learner rank's end. Ranks other than 0 only take part in gathering shards."""

    def __init__(
        self,
        rank: int,
        device: torch.device,
        deadline_seconds: float,
        buffer_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._rank = rank
        self._device = device
        self._deadline_seconds = deadline_seconds
        self._buffer_bytes = buffer_bytes
        self._engine: Any = None
        self._frozen: WeightBucket | None = None
        self._published: tuple[WeightSource, WeightUpdate] | None = None
        self._stream: Iterator[tuple[str, torch.Tensor]] = iter(())

    def join(self, group: WeightGroup) -> None:
        """Leave the previous group, if any, and open the new one; returns when all members have joined.

        Raises TimeoutError when they have not within the deadline.
        """
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )

        self.leave()
        host, port = group.address.rsplit(":", 1)
        info = NCCLTrainerInitInfo(
            rank=self._rank,
            master_address=host,
            master_port=int(port),
            world_size=group.world_size,
            packed=True,
            packed_buffer_size_bytes=self._buffer_bytes,
        )

        def on_own_device() -> Any:
            # `within` runs this in another thread, and torch's current device is per thread.
            if self._device.type != "cpu":
                torch.accelerator.set_device_index(self._device)
            return NCCLTrainerWeightTransferEngine.trainer_init(
                info, client=_DriverDoesIt(), source=_stream(self)
            )

        # `ncclCommInitRank` cannot be ended from outside: after a timeout its thread is left behind. Ranks other than 0
        # return at once, since vLLM makes no communicator for them.
        self._engine = within(self._deadline_seconds, "joining the weight group", on_own_device)

    def leave(self) -> None:
        """End the group; this also ends a broadcast that is waiting in it."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()

    def publish(self, source: WeightSource, version: int, *, to_newcomers: bool) -> WeightUpdate | None:
        if self._frozen is None:
            specs = source.specs(frozen=True)
            # Once per run, and on every rank, because it gathers shards.
            digest = digest_of(source.tensors(frozen=True)) if specs else ""
            self._frozen = packed_bucket(specs, digest, frozen=True)
        # No digest yet: the tensors are gathered only while they are sent, so it travels at the end of the stream.
        trained = packed_bucket(source.specs(frozen=False), "")
        frozen = [replace(self._frozen, sent=to_newcomers)] if self._frozen.tensors else []
        buckets = (*frozen, trained)
        update = WeightUpdate(version, buckets, update_digest(version, buckets), lasting=False)
        self._published = (source, update)
        return update if self._rank == 0 else None

    def send(self) -> None:
        """Broadcast what was published; returns when every engine has received it.

        Raises:
            RuntimeError: there is no group, or nothing was published, or the broadcast was broken off.
            TimeoutError: an engine did not receive it in time; the group has been ended.
        """
        if self._engine is None or self._published is None:
            raise RuntimeError("the learner has joined no weight group, or has published nothing")
        what = f"broadcasting policy version {self._published[1].version}"
        if self._device.type != "cpu":
            # vLLM packs on its own streams, which are not ordered after the optimizer's.
            torch.accelerator.synchronize()
        self._stream = self._gather()
        try:
            group = self._engine.model_update_group
            with ended_by(self._deadline_seconds, what, self.leave, lambda: is_broken_off(group)):
                self._engine.send_weights()
        finally:
            for _ in self._stream:  # after a failure the other ranks keep gathering and would wait for this one
                pass

    def release(self) -> None:
        """Nothing is kept."""
        self._published = None

    def stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The broadcast's tensors: the published ones that are sent, and a digest over them."""
        return self._stream

    def specs(self) -> list[TensorSpec]:
        """The specs of the tensors that `stream` yields."""
        assert self._published is not None
        return stream_specs(self._published[1])

    def _gather(self) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._published is not None
        source, update = self._published
        digest = StreamDigest()
        for bucket in update.buckets:
            if not bucket.sent:
                continue
            for name, tensor in source.tensors(frozen=bucket.frozen):
                # On these ranks vLLM only iterates, which keeps the gathering in step; nothing is sent.
                if self._rank > 0:
                    yield name, tensor
                    continue
                # vLLM collects several tensors into a chunk, but the source keeps only the latest one whole.
                kept = tensor.to(self._device, copy=True)
                digest.add(name, kept)
                yield name, kept
        yield DIGEST_NAME, torch.tensor(list(digest.digest()), dtype=torch.uint8, device=self._device)


class NcclReceiver:
    """A rollout actor's end: the bytes reach its engine's workers by broadcast."""

    @contextmanager
    def receive(self, update: WeightUpdate, held: frozenset[str]) -> Iterator[tuple[bytes, ...]]:
        yield (pickle.dumps(update),)


class _DriverDoesIt:
    """vLLM's client for calling the engines; all no-ops, because here the driver leads both sides."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def _stream(sender: NcclSender) -> VllmSource:
    """The sender's stream in vLLM's form."""
    from vllm.distributed.weight_transfer.base import ParamMeta
    from vllm.distributed.weight_transfer.base import WeightSource as VllmSource

    class Stream(VllmSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(spec.name, getattr(torch, spec.dtype), spec.shape) for spec in sender.specs()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return sender.stream()

    return Stream()
