"""The table of transports: one for each value of the setting, both ends of a kind."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
import torch

from medr1_ray.config.cluster import WeightTransport
from medr1_ray.weights.transports import TRANSPORTS
from medr1_ray.weights.transports.ipc import IpcReceiver, IpcSender
from medr1_ray.weights.transports.nccl import NcclReceiver, NcclSender
from medr1_ray.weights.transports.object_store import ObjectStoreReceiver, ObjectStoreSender


def test_every_value_of_the_setting_has_a_transport_and_no_other() -> None:
    assert set(TRANSPORTS) == set(get_args(WeightTransport))


def test_in_vllm_every_transport_has_a_name_and_a_class_of_its_own() -> None:
    assert len({transport.backend for transport in TRANSPORTS.values()}) == len(TRANSPORTS)
    assert len({transport.engine_class for transport in TRANSPORTS.values()}) == len(TRANSPORTS)


@pytest.mark.parametrize(
    ("name", "sender", "receiver"),
    [
        ("object_store", ObjectStoreSender, ObjectStoreReceiver),
        ("nccl", NcclSender, NcclReceiver),
        ("ipc", IpcSender, IpcReceiver),
    ],
)
def test_both_ends_are_of_the_same_transport(name: str, sender: type, receiver: type) -> None:
    made = TRANSPORTS[name].sender(1, torch.device("cpu"), 30.0)
    assert type(made) is sender

    async def received() -> object:  # a rollout actor makes its end on its event loop
        return TRANSPORTS[name].receiver()

    assert type(asyncio.run(received())) is receiver
    assert getattr(made, "_rank", 1) == 1
    assert getattr(made, "_deadline_seconds", 24.0) == 24.0, "two margins inside the driver's limit"


def test_a_thread_of_an_async_actor_lets_its_loop_wait_for_the_object() -> None:
    async def fetched() -> object:
        receiver = TRANSPORTS["object_store"].receiver()
        assert isinstance(receiver, ObjectStoreReceiver)

        async def reference() -> str:
            return "the bytes"

        return await asyncio.to_thread(receiver.get, reference())

    assert asyncio.run(fetched()) == "the bytes"
