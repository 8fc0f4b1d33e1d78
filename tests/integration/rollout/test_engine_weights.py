"""The order of the calls that an engine gets: while it generates, and when it sleeps."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from medr1_ray.rollout.engine_weights import EngineWeights
from medr1_ray.weights.messages import WeightBucket, WeightGroup, WeightUpdate
from medr1_ray.weights.transports.nccl import NcclReceiver

UPDATE = WeightUpdate(4, (WeightBucket((), 0, "f", None, frozen=True), WeightBucket((), 0, "t", None)), "d")


class Engine:
    """Records vLLM's calls in their order; `fails` names one that raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = ""
        self.joined: dict[str, Any] = {}

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.fails and call.startswith(self.fails):
            raise RuntimeError(f"{call} failed")

    async def collective_rpc(self, method: str) -> None:
        self._note(method)

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self._note(f"pause {mode} {clear_cache}")

    async def resume_generation(self) -> None:
        self._note("resume")

    async def start_weight_update(self) -> None:
        self._note("start")

    async def update_weights(self, request: Any) -> None:
        self._note(f"update {pickle.loads(request.update_info['payload']).version}")

    async def finish_weight_update(self, weight_version: str) -> None:
        self._note(f"finish {weight_version}")

    async def sleep(self, level: int, mode: str) -> None:
        self._note(f"sleep {level} {mode}")

    async def wake_up(self, tags: list[str]) -> None:
        self._note(f"wake {','.join(tags)}")

    async def init_weight_transfer_engine(self, request: Any) -> None:
        self.joined = request.init_info


class Receiver(NcclReceiver):
    """Notes what the engine is said to hold."""

    def __init__(self) -> None:
        self.held: list[frozenset[str]] = []

    def receive(self, update: WeightUpdate, held: frozenset[str]) -> Any:
        self.held.append(held)
        return super().receive(update, held)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def loader(engine: Engine, receiver: Receiver) -> EngineWeights:
    return EngineWeights(engine, receiver)  # type: ignore[arg-type]


LOADED = ["start", "update 4", "finish 4"]


def test_an_engine_that_generates_is_paused_and_resumed(engine: Engine, loader: EngineWeights) -> None:
    asyncio.run(loader.load(UPDATE))
    assert engine.calls == ["medr1_abandon_update", "pause keep True", *LOADED, "resume"]


def test_an_engine_that_sleeps_gets_its_cache_back_after_its_weights(engine: Engine, loader: EngineWeights) -> None:
    async def round_trip() -> None:
        await loader.sleep()
        await loader.load(UPDATE)
        await loader.wake()

    for _ in range(2):
        engine.calls.clear()
        asyncio.run(round_trip())
        asleep = ["medr1_forget_weights", "sleep 2 keep"]
        assert engine.calls == [*asleep, "medr1_abandon_update", "wake weights", *LOADED, "wake kv_cache"]
    engine.calls.clear()
    asyncio.run(loader.load(UPDATE))
    assert engine.calls[1] == "pause keep True"  # awake again


def test_an_engine_without_weights_is_not_woken(engine: Engine, loader: EngineWeights) -> None:
    asyncio.run(loader.sleep())
    with pytest.raises(RuntimeError, match="has no weights"):
        asyncio.run(loader.wake())
    asyncio.run(loader.load(UPDATE))
    asyncio.run(loader.wake())
    assert engine.calls[-1] == "wake kv_cache"


def test_a_failed_load_of_a_sleeping_engine_can_be_repeated(engine: Engine, loader: EngineWeights) -> None:
    asyncio.run(loader.sleep())
    engine.fails = "update"
    with pytest.raises(RuntimeError, match="update 4 failed"):
        asyncio.run(loader.load(UPDATE))
    assert "resume" not in engine.calls
    engine.fails = ""
    engine.calls.clear()
    asyncio.run(loader.load(UPDATE))
    assert engine.calls == ["medr1_abandon_update", *LOADED]  # its weights' memory is back already


def test_what_is_held_is_forgotten_by_sleep_and_by_failure(
    engine: Engine, receiver: Receiver, loader: EngineWeights
) -> None:
    asyncio.run(loader.load(UPDATE))
    asyncio.run(loader.load(UPDATE))
    engine.fails = "finish"
    with pytest.raises(RuntimeError, match="finish"):
        asyncio.run(loader.load(UPDATE))
    engine.fails = ""
    asyncio.run(loader.load(UPDATE))
    asyncio.run(loader.sleep())
    asyncio.run(loader.load(UPDATE))
    frozen, nothing = frozenset({"f"}), frozenset[str]()
    assert receiver.held == [nothing, frozen, frozen, nothing, nothing]


def test_a_group_is_joined_at_the_engines_own_offset(engine: Engine, loader: EngineWeights) -> None:
    asyncio.run(loader.join(WeightGroup("10.0.0.1:1234", world_size=8, rank_offset=3), 30.0))
    expected = {"master_address": "10.0.0.1", "master_port": 1234, "world_size": 8, "rank_offset": 3}
    assert engine.joined.items() >= {**expected, "packed": True, "deadline_seconds": 30.0}.items()
