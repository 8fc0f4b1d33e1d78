"""The NCCL transport with every part real but the communicator, which is gloo's: rendezvous, ranks, packing, digests,
a change of members, and what happens when somebody does not come."""

from __future__ import annotations

import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import DistNetworkError, PrefixStore, ProcessGroupGloo
from torch.distributed.distributed_c10d import BroadcastOptions
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.weight_transfer import packed_tensor

from medr1_ray.cluster.ports import free_port
from medr1_ray.weights.digests import WeightDigestError
from medr1_ray.weights.engine.checked_loading import UpdateInfo
from medr1_ray.weights.engine.nccl import NcclTransferEngine
from medr1_ray.weights.messages import WeightGroup, WeightMember, WeightUpdate, weight_groups
from medr1_ray.weights.transports.nccl import NcclSender, break_off, is_broken_off
from tests.integration.weights import small_engine as small

CPU = torch.device("cpu")
DEADLINE = 300.0


@dataclass
class Recorded:
    """What the communicators of a test saw, by rank; and what is wrong with some of them."""

    sizes: dict[int, list[int]] = field(default_factory=dict)
    destroyed: list[int] = field(default_factory=list)
    deaf: set[int] = field(default_factory=set)
    stuck: bool = False
    waiting: list[int] = field(default_factory=list)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Replaces vLLM's NCCL communicator by gloo's, and CUDA streams by nothing."""
    record = Recorded()

    class Gloo:
        def __init__(self, group: Any, device: Any) -> None:
            self.rank = group.rank
            self.group = group
            self._destroyed = threading.Event()
            record.sizes[self.rank] = []
            store = PrefixStore("weights", group.store)
            self._gloo = ProcessGroupGloo(store, group.rank, group.world_size, timedelta(seconds=DEADLINE))

        def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
            record.sizes[self.rank].append(tensor.numel())
            if record.stuck:  # as NCCL: for ever, unless aborted
                record.waiting.append(self.rank)
                self._destroyed.wait()
                raise RuntimeError("the communicator was aborted")
            options = BroadcastOptions()
            options.rootRank = src
            received = tensor.clone() if self.rank in record.deaf else tensor
            self._gloo.broadcast([received], options).wait()

        def destroy(self) -> None:
            record.destroyed.append(self.rank)
            self._destroyed.set()

    class NoStream:
        def synchronize(self) -> None: ...

    monkeypatch.setattr(pynccl, "PyNcclCommunicator", Gloo)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, count: (NoStream(),) * count)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    return record


@dataclass
class Fleet:
    """A learner rank and the workers of several engines, each in a thread of its own when it matters."""

    sender: NcclSender
    buffer_bytes: int
    members: list[WeightMember] = field(default_factory=list)
    workers: list[list[Any]] = field(default_factory=list)
    address: str = ""

    def add(self, folder: Path, ranks: int) -> None:
        self.members.append(WeightMember(f"rollout-{len(self.members)}", "0", ranks))
        self.workers.append([small.engine(NcclTransferEngine, folder, rank, ranks) for rank in range(ranks)])

    def join(self, deadline: float = DEADLINE, absent: Sequence[int] = ()) -> list[Any]:
        self.address = address = f"127.0.0.1:{free_port()}"
        places = weight_groups(address, self.members)
        calls: list[Callable[[], Any]] = [
            lambda: self.sender.join(WeightGroup(address, places[0].world_size, 0))
        ]
        for i, (place, engine) in enumerate(zip(places, self.workers, strict=True)):
            for worker in engine if i not in absent else []:
                calls.append(lambda worker=worker, place=place: self._join(worker, place, deadline))
        return outcomes(calls)

    def sync(self, update: WeightUpdate, to: Sequence[int] | None = None) -> list[Any]:
        """The sender's outcome, then each worker's."""
        engines = self.workers if to is None else [self.workers[i] for i in to]
        workers = [worker for engine in engines for worker in engine]
        return outcomes([self.sender.send, *(lambda worker=worker: receive(worker, update) for worker in workers)])

    def limit_broadcasts(self, seconds: float) -> None:
        for end in (self.sender, *(worker for engine in self.workers for worker in engine)):
            end._deadline_seconds = seconds

    def _join(self, worker: Any, place: WeightGroup, deadline: float) -> None:
        host, port = place.address.split(":")
        info = {
            "master_address": host,
            "master_port": int(port),
            "rank_offset": place.rank_offset,
            "world_size": place.world_size,
            "packed": True,
            "packed_buffer_size_bytes": self.buffer_bytes,
            "deadline_seconds": deadline,
        }
        worker.init_transfer_engine(worker.parse_init_info(info))


def receive(worker: Any, update: WeightUpdate) -> None:
    worker.abandon()
    worker.start_weight_update()
    worker.receive_weights(UpdateInfo(pickle.dumps(update)))
    worker.finish_weight_update()


def outcomes(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each call returned or raised; all run at once."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.exception() or future.result() for future in futures]


@pytest.fixture
def fleet(tmp_path: Path, recorded: Recorded) -> Iterator[Callable[..., Fleet]]:
    def make(*ranks: int, buffer_bytes: int = 100, deadline: float = DEADLINE) -> Fleet:
        made = Fleet(NcclSender(0, CPU, deadline, buffer_bytes), buffer_bytes)
        for count in ranks:
            made.add(tmp_path, count)
        return made

    return make


def published(fleet: Fleet, weights: Any, version: int, *, to_newcomers: bool = True) -> WeightUpdate:
    update = fleet.sender.publish(small.Source(weights), version, to_newcomers=to_newcomers)
    assert update is not None
    return update


def test_rank_offsets_follow_the_tensor_parallel_sizes() -> None:
    members = [WeightMember(name, "0", ranks) for name, ranks in (("a", 2), ("b", 1), ("c", 4))]
    places = weight_groups("host:1", members)
    assert [(place.rank_offset, place.world_size) for place in places] == [(1, 8), (3, 8), (4, 8)]


# Tensors of 48, 16, 80, 20 and 6000 bytes and a digest of 16. vLLM ends a chunk with the tensor that exceeds the bound.
@pytest.mark.filterwarnings("ignore:Tensor .* exceeds buffer_size_bytes")
@pytest.mark.parametrize(
    ("buffer_bytes", "chunks"), [(40, [48, 96, 6020, 16]), (64, [144, 6020, 16]), (10**6, [6180])]
)
def test_engines_of_several_sizes_get_every_tensor_in_the_same_chunks(
    fleet: Callable[..., Fleet], recorded: Recorded, buffer_bytes: int, chunks: list[int]
) -> None:
    made = fleet(2, 1, 4, buffer_bytes=buffer_bytes)
    assert made.join() == [None] * 8
    weights = small.weights_of(3)
    assert made.sync(published(made, weights, 7)) == [None] * 8
    assert sorted(recorded.sizes) == list(range(8))
    assert len({tuple(sizes) for sizes in recorded.sizes.values()}) == 1
    assert all(small.equal(small.held(worker), weights) for engine in made.workers for worker in engine)
    assert recorded.sizes[0] == chunks


def test_frozen_parameters_are_broadcast_once_per_group(fleet: Callable[..., Fleet], recorded: Recorded) -> None:
    made = fleet(1, 1)
    made.join()
    start, trained = small.weights_of(3), small.weights_of(4)
    assert made.sync(published(made, start, 0)) == [None] * 3
    everything = sum(recorded.sizes[0])
    recorded.sizes[0].clear()
    assert made.sync(published(made, trained, 1, to_newcomers=False)) == [None] * 3
    assert everything - sum(recorded.sizes[0]) == 48 + 16
    expected = {name: (start if "visual" in name else trained)[name] for name in start}
    assert all(small.equal(small.held(worker), expected) for (worker,) in made.workers)


def test_an_engine_that_lacks_the_frozen_parameters_says_so_before_it_changes(
    fleet: Callable[..., Fleet], recorded: Recorded
) -> None:
    made = fleet(1)
    made.join()
    ((worker,),) = made.workers
    before = {name: tensor.clone() for name, tensor in small.held(worker).items()}
    with pytest.raises(ValueError, match="was not sent and is not held"):
        receive(worker, published(made, small.weights_of(3), 1, to_newcomers=False))
    assert small.equal(small.held(worker), before)
    assert recorded.sizes[1] == []


def test_a_communicator_that_moves_nothing_is_found_by_the_digest(
    fleet: Callable[..., Fleet], recorded: Recorded
) -> None:
    made = fleet(1, 1)
    made.join()
    recorded.deaf.add(2)
    sent, good, bad = made.sync(published(made, small.weights_of(3), 1))
    assert (sent, good) == (None, None)
    assert isinstance(bad, WeightDigestError)
    recorded.deaf.clear()
    assert made.sync(published(made, small.weights_of(4), 2)) == [None] * 3
    assert all(small.equal(small.held(worker), small.weights_of(4)) for (worker,) in made.workers)


def test_a_member_that_comes_and_one_that_goes_make_a_new_group(
    fleet: Callable[..., Fleet], recorded: Recorded, tmp_path: Path
) -> None:
    made = fleet(2, 1)
    made.join()
    made.sync(published(made, small.weights_of(3), 1))
    made.add(tmp_path, 1)
    del made.members[0], made.workers[0]
    recorded.sizes.clear()
    assert made.join() == [None] * 3
    assert sorted(recorded.destroyed) == [0, 3]  # the old group's, of those that are still there
    assert sorted(recorded.sizes) == [0, 1, 2]
    assert made.sync(published(made, small.weights_of(5), 2)) == [None] * 3
    assert all(small.equal(small.held(worker), small.weights_of(5)) for (worker,) in made.workers)


def test_a_member_that_never_joins_is_waited_for_until_the_deadline(fleet: Callable[..., Fleet]) -> None:
    made = fleet(1, 1, deadline=1.0)
    learner, worker = made.join(deadline=1.0, absent=[1])
    for outcome in (learner, worker):
        assert isinstance(outcome, TimeoutError)
        assert "joining the weight group timed out after 1 s" in str(outcome)
    with pytest.raises(RuntimeError, match=r"joined no weight group|not joined a weight group"):
        made.sender.send()
    with pytest.raises(RuntimeError, match=r"joined no weight group|not joined a weight group"):
        receive(made.workers[0][0], published(made, small.weights_of(0), 0))


def test_a_broadcast_that_waits_for_a_dead_member_is_aborted_and_a_new_group_heals(
    fleet: Callable[..., Fleet], recorded: Recorded
) -> None:
    made = fleet(1, 1)
    made.join()
    made.limit_broadcasts(1.0)
    recorded.stuck = True
    source = small.Source(small.weights_of(3))
    update = made.sender.publish(source, 1, to_newcomers=True)
    assert update is not None
    source.gathered.clear()
    ended = made.sync(update, to=[0])
    assert any(isinstance(outcome, TimeoutError) for outcome in ended)
    # Whoever came later may hear from the one that waited for longer.
    ends = r"policy version 1 (timed out after 1 s|was broken off)$"
    assert all(re.search(ends, str(outcome)) for outcome in ended), ended
    assert sorted(recorded.destroyed) == [0, 1]
    assert source.gathered == list(small.weights_of(3))  # the other learner ranks are not left behind
    recorded.stuck = False
    made.limit_broadcasts(DEADLINE)
    del made.members[1], made.workers[1]
    assert made.join() == [None] * 2
    assert made.sync(published(made, small.weights_of(3), 1)) == [None] * 2
    assert small.equal(small.held(made.workers[0][0]), small.weights_of(3))


def test_a_broadcast_whose_member_died_is_broken_off_at_once(
    fleet: Callable[..., Fleet], recorded: Recorded
) -> None:
    made = fleet(1, 1)
    made.join()
    made.limit_broadcasts(300.0)
    recorded.stuck = True
    update = published(made, small.weights_of(3), 1)
    with ThreadPoolExecutor(1) as pool:
        sync = pool.submit(made.sync, update, [0])
        while sorted(recorded.waiting) != [0, 1]:
            assert not sync.done(), sync.result()
            time.sleep(0.05)
        break_off(made.address)
        for outcome in sync.result(timeout=200):
            assert isinstance(outcome, RuntimeError)
            assert str(outcome).endswith("policy version 1 was broken off")
    assert sorted(recorded.destroyed) == [0, 1]
    recorded.stuck = False
    made.limit_broadcasts(DEADLINE)
    del made.members[1], made.workers[1]
    assert made.join() == [None] * 2, "the next group has another store"
    assert made.sync(published(made, small.weights_of(4), 2)) == [None] * 2


def test_whoever_has_lost_the_learner_waits_for_nobody() -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise DistNetworkError("connection reset by peer")

    assert is_broken_off(SimpleNamespace(group=SimpleNamespace(store=Gone())))
    assert not is_broken_off(None)
    break_off("127.0.0.1:1")  # nobody listens there: no error, since the members notice it themselves


def test_parameters_of_several_types_are_refused(fleet: Callable[..., Fleet]) -> None:
    weights = small.weights_of(0)
    weights["first.bias"] = weights["first.bias"].bfloat16()
    with pytest.raises(ValueError, match=r"several dtypes \(bfloat16, float32\)"):
        published(fleet(1), weights, 0)
