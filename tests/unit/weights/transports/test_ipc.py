"""Both ends of CUDA IPC around recorded handles: what is exported, proven, and freed. No engine here."""

from __future__ import annotations

import pickle

import pytest
import torch

from medr1_ray.weights.buckets import read_bucket
from medr1_ray.weights.digests import digest_of, update_digest
from medr1_ray.weights.messages import TensorSpec, WeightUpdate
from medr1_ray.weights.transports.ipc import Handles, IpcPart, IpcReceiver, IpcSender, cut
from tests.unit.weights.tensors import Source

# 60, 4, 400 and 40 bytes; `c` is frozen.
TENSORS = {
    "a": torch.arange(15.0).reshape(3, 5),
    "b": torch.tensor(3.5),
    "c": torch.arange(100.0).reshape(10, 10).T,
    "d": torch.arange(10.0),
}


class Memory:
    """What was exported, under numbers."""

    def __init__(self) -> None:
        self.exported: list[torch.Tensor] = []

    def export(self, buffer: torch.Tensor) -> Handles:
        self.exported.append(buffer)
        return {"GPU-a": (len(self.exported) - 1,)}


@pytest.fixture
def memory() -> Memory:
    return Memory()


def published(memory: Memory, tensors: dict[str, torch.Tensor] = TENSORS) -> tuple[IpcSender, WeightUpdate]:
    sender = IpcSender(torch.device("cpu"), 100, memory.export)
    update = sender.publish(Source(tensors, "c"), 7, to_newcomers=False)
    assert update is not None
    return sender, update


def test_buckets_are_cut_in_order_and_a_large_tensor_is_alone() -> None:
    specs = [
        TensorSpec(name, "bfloat16", (size,), 0)
        for name, size in (("empty", 0), ("a", 20), ("b", 30), ("c", 51), ("d", 1))
    ]
    assert [[spec.name for spec in bucket] for bucket in cut(specs, 100)] == [["empty", "a", "b"], ["c"], ["d"]]
    assert cut([], 100) == []


def test_every_bucket_lies_in_memory_of_its_own_with_a_proof_of_what_is_there(memory: Memory) -> None:
    _, update = published(memory)
    names = [[spec.name for spec in bucket.tensors] for bucket in update.buckets]
    assert names == [["c"], ["a", "b"], ["d"]], "60 + 4 + 40 bytes are more than 100"
    assert [bucket.frozen for bucket in update.buckets] == [True, False, False]
    assert all(bucket.sent for bucket in update.buckets), "an engine that slept has lost the frozen ones as well"
    assert [bucket.data for bucket in update.buckets] == [{"GPU-a": (i,)} for i in range(3)]
    for bucket, buffer in zip(update.buckets, memory.exported, strict=True):
        found = dict(read_bucket(buffer.numpy(), bucket))
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in found.items())
        assert bucket.digest == digest_of(found.items())
    assert update.digest == update_digest(7, update.buckets)
    assert (update.version, update.lasting) == (7, False), "it can be loaded only while the learner keeps it"


def test_a_source_that_keeps_only_its_latest_tensor_is_copied_in_time(memory: Memory) -> None:
    class Gathering(Source):
        def tensors(self, *, frozen: bool):  # type: ignore[no-untyped-def]
            whole = torch.empty(100)
            for name, tensor in super().tensors(frozen=frozen):
                yield name, whole[: tensor.numel()].view(tensor.shape).copy_(tensor)
                whole.fill_(-1)

    IpcSender(torch.device("cpu"), 1000, memory.export).publish(Gathering(TENSORS, "c"), 1, to_newcomers=True)
    assert memory.exported[1].view(torch.float32).tolist() == [*range(15), 3.5, *range(10)]


def test_a_source_that_does_not_send_what_it_declares_is_found(memory: Memory) -> None:
    class Swapped(Source):
        def tensors(self, *, frozen: bool):  # type: ignore[no-untyped-def]
            yield from sorted(super().tensors(frozen=frozen), reverse=True)

    with pytest.raises(AssertionError, match="d came where a was declared"):
        IpcSender(torch.device("cpu"), 100, memory.export).publish(Swapped(TENSORS, "c"), 1, to_newcomers=True)


def test_what_was_exported_lives_until_it_is_released_or_replaced(memory: Memory) -> None:
    sender, update = published(memory)
    assert pickle.loads(pickle.dumps(update)) == update
    assert [buffer.numel() for buffer in sender._buffers] == [400, 64, 40]
    sender.publish(Source(TENSORS, "c"), 8, to_newcomers=True)
    assert len(sender._buffers) == 3, "no GPU holds the model more than once more"
    sender.release()
    assert sender._buffers == []


def test_an_engine_gets_one_call_for_each_bucket(memory: Memory) -> None:
    _, update = published(memory)
    with IpcReceiver().receive(update, frozenset({update.buckets[0].digest})) as payloads:
        parts = [pickle.loads(payload) for payload in payloads]
    assert parts == [IpcPart(update, i) for i in range(3)]
