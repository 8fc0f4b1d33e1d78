"""Both ends of a broadcast without a communicator: what is in the stream, and how its end proves it."""

from __future__ import annotations

import pickle

import pytest
import torch

from medr1_ray.weights.buckets import tensor_spec
from medr1_ray.weights.digests import StreamDigest, WeightDigestError
from medr1_ray.weights.messages import WeightUpdate
from medr1_ray.weights.transports.nccl import (
    DIGEST_NAME,
    NcclReceiver,
    NcclSender,
    ProvenStream,
    stream_specs,
)
from tests.unit.weights.tensors import Source

TENSORS = {name: torch.full((size,), float(size)) for name, size in (("a", 3), ("b", 1), ("c", 4), ("d", 2))}
CPU = torch.device("cpu")

Named = list[tuple[str, torch.Tensor]]


class Engine:
    """Stands in for vLLM's: takes what the sender streams."""

    def __init__(self, sender: NcclSender, fails: bool = False) -> None:
        self._sender = sender
        self._fails = fails
        self.taken: Named = []
        self.model_update_group = None
        self.ended = False

    def send_weights(self) -> None:
        for name, tensor in self._sender.stream():
            self.taken.append((name, tensor))
            if self._fails:
                raise RuntimeError("the communicator broke")

    def shutdown(self) -> None:
        self.ended = True


def joined(rank: int = 0, *, fails: bool = False) -> tuple[NcclSender, Engine]:
    sender = NcclSender(rank, CPU, 20.0)
    sender._engine = Engine(sender, fails)
    return sender, sender._engine


def publish(sender: NcclSender, source: Source, version: int = 1, *, to_newcomers: bool = True) -> WeightUpdate:
    update = sender.publish(source, version, to_newcomers=to_newcomers)
    assert update is not None
    return update


def proof(named: Named) -> Named:
    digest = StreamDigest()
    for name, tensor in named:
        digest.add(name, tensor)
    return [(DIGEST_NAME, torch.tensor(list(digest.digest()), dtype=torch.uint8))]


def test_a_broadcast_is_what_was_announced_and_ends_with_its_proof() -> None:
    sender, engine = joined()
    update = publish(sender, Source(TENSORS, "cd"))
    assert [(bucket.frozen, bucket.sent) for bucket in update.buckets] == [(True, True), (False, True)]
    assert not update.lasting
    sender.send()
    assert [name for name, _ in engine.taken] == ["c", "d", "a", "b", DIGEST_NAME]
    announced = [(spec.name, spec.dtype, spec.shape) for spec in stream_specs(update)]
    sent = [tensor_spec(name, tensor) for name, tensor in engine.taken]
    assert announced == [(spec.name, spec.dtype, spec.shape) for spec in sent]
    assert announced == [(spec.name, spec.dtype, spec.shape) for spec in sender.specs()]
    loaded: Named = []
    stream = ProvenStream(loaded.extend, update.version)
    stream.take(engine.taken[:3])
    stream.take(engine.taken[3:])
    stream.check()
    assert [name for name, _ in loaded] == ["c", "d", "a", "b"], "the proof is no parameter"


def test_frozen_parameters_go_to_newcomers_and_are_always_listed() -> None:
    sender, engine = joined()
    first = publish(sender, Source(TENSORS, "cd"))
    second = publish(sender, Source(TENSORS, "cd"), 2, to_newcomers=False)
    assert [bucket.sent for bucket in second.buckets] == [False, True]
    assert [bucket.digest for bucket in second.buckets] == [bucket.digest for bucket in first.buckets]
    assert first.buckets[0].digest, "by which an engine knows that it holds them"
    sender.send()
    assert [name for name, _ in engine.taken] == ["a", "b", DIGEST_NAME]
    assert [spec.name for spec in stream_specs(second)] == ["a", "b", DIGEST_NAME]


def test_frozen_parameters_are_gathered_for_their_digest_once() -> None:
    sender, _ = joined()
    source = Source(TENSORS, "cd")
    for version in range(3):
        publish(sender, source, version, to_newcomers=False)
    assert source.gathered == ["c", "d"]


def test_a_model_without_frozen_parameters_has_one_bucket() -> None:
    sender, _ = joined()
    (bucket,) = publish(sender, Source(TENSORS, "")).buckets
    assert not bucket.frozen


def test_other_ranks_announce_nothing_and_take_part_in_the_gathering() -> None:
    sender, _ = joined(rank=1)
    source = Source(TENSORS, "cd")
    assert sender.publish(source, 1, to_newcomers=True) is None
    source.gathered.clear()
    sender.send()
    assert source.gathered == ["c", "d", "a", "b"]


def test_tensors_of_a_chunk_stay_whole_although_the_source_keeps_the_latest_only() -> None:
    class Gathering(Source):
        def tensors(self, *, frozen: bool):  # type: ignore[no-untyped-def]
            whole = torch.empty(4)
            for name, tensor in super().tensors(frozen=frozen):
                yield name, whole[: tensor.numel()].copy_(tensor)

    sender, engine = joined()
    publish(sender, Gathering(TENSORS, ""))
    sender.send()
    assert [tensor.tolist() for _, tensor in engine.taken[:-1]] == [[3.0] * 3, [1.0], [4.0] * 4, [2.0] * 2]


def test_after_a_failure_the_rest_is_gathered_since_the_other_ranks_wait_for_it() -> None:
    sender, _ = joined(fails=True)
    source = Source(TENSORS, "")
    publish(sender, source)
    with pytest.raises(RuntimeError, match="the communicator broke"):
        sender.send()
    assert source.gathered == [*"abcd"]


def test_without_a_group_or_an_update_there_is_nothing_to_send() -> None:
    sender, engine = joined()
    with pytest.raises(RuntimeError, match="joined no weight group, or has published nothing"):
        sender.send()
    publish(sender, Source(TENSORS, ""))
    sender.leave()
    assert engine.ended
    with pytest.raises(RuntimeError, match="joined no weight group"):
        sender.send()
    sender, engine = joined()
    publish(sender, Source(TENSORS, ""))
    sender.release()
    with pytest.raises(RuntimeError, match="published nothing"):
        sender.send()
    assert engine.taken == []


@pytest.mark.parametrize("wrong", ["value", "name", "order", "missing", "no proof"])
def test_a_stream_that_is_not_what_was_sent_is_refused(wrong: str) -> None:
    named = list(TENSORS.items())
    received = [*named, *proof(named)]
    if wrong == "value":
        received[1] = ("b", torch.tensor([1.5]))
    elif wrong == "name":
        received[1] = ("B", TENSORS["b"])
    elif wrong == "order":
        received[0], received[1] = received[1], received[0]
    elif wrong == "missing":
        del received[0]
    else:
        del received[-1]
    stream = ProvenStream(lambda weights: None, 7)
    stream.take(received)
    with pytest.raises(WeightDigestError, match="policy version 7: the broadcast received has digest"):
        stream.check()


def test_an_engine_gets_the_announcement_alone() -> None:
    sender, _ = joined()
    update = publish(sender, Source(TENSORS, "cd"))
    with NcclReceiver().receive(update, frozenset()) as payloads:
        (payload,) = payloads
    assert pickle.loads(payload) == update
