"""Combinations of settings that are refused, and the error messages."""

from __future__ import annotations

from typing import Any

import pytest

from medr1_ray.config import Config, automatic_transport

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
            given = isinstance(values, dict)
            settings[section] = {**settings.get(section, {}), **values} if given else values
    return Config.model_validate(settings)


def test_what_goes_together_is_accepted() -> None:
    assert config().cluster.weight_transport == "object_store"
    assert config(APART).cluster.weight_transport == "nccl"
    assert config(APART, {"cluster": {"weight_transport": "nccl"}}).cluster.weight_transport == "nccl"
    assert config(SHARED).cluster.colocated
    assert config(SHARED, {"cluster": {"weight_transport": "object_store"}}).cluster.colocated


ON_ONE_GPU = [SHARED, {"cluster": {"weight_transport": "auto"}}]


@pytest.mark.parametrize(
    ("changes", "transport", "why"),
    [
        ([], "object_store", "not both sides have GPUs"),
        ([APART, {"rollout": {"gpus_per_actor": 0}}], "object_store", "not both sides have GPUs"),
        ([APART, {"learner": {"gpus_per_rank": 0}}], "object_store", "not both sides have GPUs"),
        ([APART], "nccl", "GPUs of their own"),
        ([APART, {"rollout": {"gpus_per_actor": 2, "tensor_parallel_size": 2}}], "nccl", "GPUs of their own"),
        ([APART, {"rollout": {"max_actors": 4}}], "nccl", "GPUs of their own"),
        ([APART, {"rollout": {"gpus_per_actor": 0.5}}], "object_store", "may be of the same one"),
        ([APART, {"learner": {"gpus_per_rank": 0.5}}], "object_store", "may be of the same one"),
        (ON_ONE_GPU, "ipc", "shares its GPU"),
    ],
)
def test_by_default_weights_take_the_best_way_that_the_hardware_has(
    changes: list[dict[str, Any]], transport: str, why: str
) -> None:
    resolved = config(*changes)
    assert resolved.cluster.weight_transport == transport
    assert automatic_transport(resolved)[0] == transport
    assert why in automatic_transport(resolved)[1]
    given = config(*changes, {"cluster": {"weight_transport": "object_store"}})
    assert given.cluster.weight_transport == "object_store", "what is given is not changed"


def test_the_default_transport_is_there_however_the_settings_are_made() -> None:
    sections = {"run": {"dir": "unused"}, "data": {"format": "phantoms", "root": "unused"}, "train": {"steps": 1}}
    assert Config(**sections, **APART).cluster.weight_transport == "nccl"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([{"cluster": {"weight_transport": "nccl"}}], "moves weights between GPUs, but learner.gpus_per_rank=0"),
        ([{"cluster": {"weight_transport": "ipc"}}], "moves weights between GPUs"),
        ([APART, {"rollout": {"gpus_per_actor": 0}}, {"cluster": {"weight_transport": "nccl"}}], "gpus_per_actor=0;"),
        ([APART, {"learner": {"gpus_per_rank": 0}}, {"cluster": {"weight_transport": "nccl"}}], "gpus_per_rank=0,"),
        ([APART, {"cluster": {"weight_transport": "ipc"}}], "set cluster.colocated=true"),
        (
            [APART, {"rollout": {"gpus_per_actor": 0.5}}, {"cluster": {"weight_transport": "nccl"}}],
            r"nccl with learner.gpus_per_rank=1, rollout.gpus_per_actor=0.5: .*; give both whole GPUs, or use .*object",
        ),
        ([APART, {"learner": {"gpus_per_rank": 0.25}}, {"cluster": {"weight_transport": "nccl"}}], "both whole GPUs"),
        ([APART, {"rollout": {"gpus_per_actor": 1.5}}], "rollout.gpus_per_actor=1.5: Ray gives a .* whole GPUs; use 1"),
        ([{"cluster": {"colocated": True}}], "share GPUs, so both need a fraction of one"),
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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            [{"train": {"updates_per_rollout": 2}}],
            r"train\.steps=1 is not a multiple of train\.updates_per_rollout=2; choose a multiple, e\.g\. 2 ",
        ),
        (
            [{"train": {"steps": 9, "minibatches": 2, "updates_per_rollout": 2}}],
            r"train\.steps=9 is not a multiple of train\.minibatches=2 times train\.updates_per_rollout=2, .*e\.g\. 8 ",
        ),
        (
            [{"train": {"steps": 6, "minibatches": 3, "prompts_per_step": 8}}],
            r"train\.minibatches=3 does not divide train\.prompts_per_step=8 into equal parts; choose a divisor, or "
            r"e\.g\. train\.prompts_per_step=9 ",
        ),
        (
            [{"train": {"steps": 4, "minibatches": 4, "prompts_per_step": 8}, "learner": {"world_size": 3}}],
            r"train\.minibatches=4: 2 of the train\.prompts_per_step=8 in each are less than learner\.world_size=3, .*",
        ),
        (
            [{"train": {"prompts_per_step": 2}}, {"learner": {"world_size": 3}}],
            r"train\.prompts_per_step=2 is less than learner\.world_size=3: every rank needs a group; use at least 3",
        ),
        ([{"rollout": {"top_p": 0.9}}], r"rollout\.top_p=0\.9, rollout\.top_k=0: .* importance ratios"),
        ([{"rollout": {"top_k": 1}}], r"rollout\.top_p=1\.0, rollout\.top_k=1: .* importance ratios"),
        ([{"loss": {"importance_cap": None}}, {"train": {"max_staleness": 1}}], "needs loss.importance_cap"),
        (
            [{"reward": {"overlong_buffer_tokens": 9}}, {"rollout": {"max_tokens": 8}}],
            r"overlong_buffer_tokens=9 is larger than rollout\.max_tokens=8",
        ),
        ([{"data": {"format": "medr1", "train_file": "a"}}], r"data\.eval_file=None: data\.format=medr1 needs both"),
        ([{"data": {"format": "medr1", "eval_file": "a"}}], r"data\.train_file=None"),
        ([{"rollout": {"temperature": 0.7}}, {"objective": "sft"}], r"rollout\.temperature=0\.7: SFT"),
        (
            [{"train": {"steps": 2, "updates_per_rollout": 2}}, {"objective": "sft"}],
            r"train\.updates_per_rollout=2: SFT",
        ),
        (
            [{"train": {"steps": 2, "minibatches": 2}}, {"objective": "sft"}],
            r"train\.minibatches=2: SFT has no rollouts and takes one optimizer step per batch; set it to 1 ",
        ),
    ],
)
def test_what_would_be_silently_wrong_is_refused(changes: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(*changes)


@pytest.mark.parametrize(
    "changes",
    [
        [{"train": {"steps": 4, "updates_per_rollout": 2}}],
        [{"train": {"prompts_per_step": 3}}, {"learner": {"world_size": 3}}],
        [{"rollout": {"top_p": 0.9, "top_k": 5}}, {"loss": {"importance_cap": None}}],
        [{"train": {"max_staleness": 1}}],
        [{"reward": {"overlong_buffer_tokens": 8}}, {"rollout": {"max_tokens": 8}}],
        [{"data": {"format": "medr1", "train_file": "a", "eval_file": "b"}}],
        [{"rollout": {"temperature": 0.7}}],
        [{"objective": "sft"}],
    ],
)
def test_what_lies_beside_a_refused_combination_is_accepted(changes: list[dict[str, Any]]) -> None:
    config(*changes)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    config({"train": {"steps": 20}, "learner": {"warmup_steps": 20}})
    with pytest.raises(ValueError, match=r"learner\.warmup_steps=21 is more than train\.steps=20"):
        config({"train": {"steps": 20}, "learner": {"warmup_steps": 21}})
