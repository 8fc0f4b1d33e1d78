"""The two ends of `cluster.weight_transport`."""

from __future__ import annotations

import torch

from medr1_ray.config import Config
from medr1_ray.weight_ipc import IpcReceiver, IpcSender
from medr1_ray.weight_nccl import NcclReceiver, NcclSender
from medr1_ray.weight_object_store import ObjectStoreReceiver, ObjectStoreSender
from medr1_ray.weight_sync import WeightReceiver, WeightSender


def weight_sender(config: Config, rank: int, device: torch.device) -> WeightSender:
    """The end of learner rank `rank`, whose parameters are on `device`."""
    import ray

    match config.cluster.weight_transport:
        case "object_store":
            return ObjectStoreSender(ray.put, rank)
        case "nccl":
            return NcclSender(rank, device, config.cluster.sync_timeout_seconds)
        case "ipc":
            return IpcSender(device)


def weight_receiver(config: Config) -> WeightReceiver:
    """The end of a rollout actor."""
    import ray

    match config.cluster.weight_transport:
        case "object_store":
            return ObjectStoreReceiver(ray.get)
        case "nccl":
            return NcclReceiver()
        case "ipc":
            return IpcReceiver()
