"""Which transports and placements are refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from medr1_ray.config import Config

APART: dict[str, Any] = {"learner": {"gpus_per_rank": 1}, "rollout": {"gpus_per_actor": 1}}
SHARED: dict[str, Any] = {
    "cluster": {"colocated": True, "weight_transport": "ipc"},
    "learner": {"gpus_per_rank": 0.5, "world_size": 2},
    "rollout": {"gpus_per_actor": 0.5, "actors": 2},
}


def config(*changes: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "run": {"dir": "unused"},
        "data": {"format": "phantoms", "root": "unused"},
        "train": {"steps": 1},
    }
    for change in changes:
        for section, values in change.items():
            settings[section] = {**settings.get(section, {}), **values}
    return Config.model_validate(settings)


def test_what_goes_together_is_accepted() -> None:
    assert config().cluster.weight_transport == "object_store"
    assert config(APART, {"cluster": {"weight_transport": "nccl"}}).cluster.weight_transport == "nccl"
    assert config(SHARED).cluster.colocated
    assert config(SHARED, {"cluster": {"weight_transport": "object_store"}}).cluster.colocated


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([{"cluster": {"weight_transport": "nccl"}}], "moves weights between GPUs, but learner.gpus_per_rank=0"),
        ([{"cluster": {"weight_transport": "ipc"}}], "moves weights between GPUs"),
        ([APART, {"rollout": {"gpus_per_actor": 0}}, {"cluster": {"weight_transport": "nccl"}}], "gpus_per_actor=0;"),
        ([APART, {"cluster": {"weight_transport": "ipc"}}], "set cluster.colocated=true"),
        ([{"cluster": {"colocated": True}}], "share GPUs, which there must be"),
        ([SHARED, {"cluster": {"weight_transport": "nccl"}}], "refuses two ranks on one GPU"),
        ([SHARED, {"learner": {"gpus_per_rank": 1}}], "must add up to 1"),
        ([SHARED, {"learner": {"gpus_per_rank": 0.25}}], "must add up to 1"),
        ([SHARED, {"rollout": {"actors": 3}}], r"rollout.actors=3 \(from 3 to 3\), learner.world_size=2"),
        ([SHARED, {"rollout": {"max_actors": 4}}], r"rollout.actors=2 \(from 2 to 4\)"),
        ([SHARED, {"rollout": {"tensor_parallel_size": 2}}], "tensor_parallel_size=2"),
        ([SHARED, {"train": {"steps": 1, "max_staleness": 1}}], "train.max_staleness=1"),
        ([SHARED, {"rollout": {"engine": {"enable_sleep_mode": False}}}], "enable_sleep_mode=False is set by this"),
        ([{"cluster": {"weight_transport": "carrier_pigeon"}}], "'object_store', 'nccl' or 'ipc'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(*changes)
