"""The ways of moving weights from the learner to the engines: one record for each, both ends in one file.

Runs in: learner ranks (senders) and rollout actors (receivers). The third part of a transport, which loads what arrives
inside vLLM's process, is in `weights/engine/`.

Door: this module.

To add a transport: write `<name>.py` here with a `WeightSender` and a `WeightReceiver` (`weights/protocol.py`), write
`weights/engine/<name>.py` with a class that extends `CheckedLoading` and one of vLLM's transfer engines, add a record
to `TRANSPORTS` and the name to `WeightTransport` (`config/cluster.py`). CONTRIBUTING.md has it step by step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medr1_ray.base.deadline import inside
from medr1_ray.weights.protocol import WeightReceiver, WeightSender
from medr1_ray.weights.transports.ipc import IpcReceiver, IpcSender
from medr1_ray.weights.transports.nccl import NcclReceiver, NcclSender, break_off
from medr1_ray.weights.transports.object_store import ObjectStoreReceiver, ObjectStoreSender

__all__ = ["TRANSPORTS", "Transport", "break_off"]


@dataclass(frozen=True)
class Transport:
    """One value of `cluster.weight_transport`.

    Args:
        sender: makes a learner rank's end from its rank, the device of its parameters and the seconds that a sync may
            take.
        receiver: makes a rollout actor's end.
        backend: the name under which vLLM knows the part in its process.
        engine_class: that part, as `module:class`; vLLM imports it there, so it is a string here.
    """

    sender: Callable[[int, torch.device, float], WeightSender]
    receiver: Callable[[], WeightReceiver]
    backend: str
    engine_class: str


def _object_store_sender(rank: int, device: torch.device, sync_seconds: float) -> WeightSender:
    import ray

    return ObjectStoreSender(ray.put, rank)


def _object_store_receiver() -> WeightReceiver:
    """Called on the rollout actor's event loop, where Ray runs the constructor of an async actor.

    `ray.get` would block, and Ray warns of it in any thread of an async actor; so the thread that stages an update lets
    the loop await the reference.
    """
    loop = asyncio.get_running_loop()

    async def fetch(reference: Any) -> Any:
        return await reference

    return ObjectStoreReceiver(lambda reference: asyncio.run_coroutine_threadsafe(fetch(reference), loop).result())


TRANSPORTS = {
    "object_store": Transport(
        _object_store_sender,
        _object_store_receiver,
        "medr1_ray_object_store",
        "medr1_ray.weights.engine.object_store:StagedTransferEngine",
    ),
    "nccl": Transport(
        # As deep inside the driver's limit as the engines' ends are.
        lambda rank, device, sync_seconds: NcclSender(rank, device, inside(sync_seconds, 2)),
        NcclReceiver,
        "medr1_ray_nccl",
        "medr1_ray.weights.engine.nccl:NcclTransferEngine",
    ),
    "ipc": Transport(
        lambda rank, device, sync_seconds: IpcSender(device),
        IpcReceiver,
        "medr1_ray_ipc",
        "medr1_ray.weights.engine.ipc:IpcTransferEngine",
    ),
}
