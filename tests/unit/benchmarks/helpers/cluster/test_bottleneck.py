"""The sentence about a benchmark, for each thing that may hold up a training."""

from __future__ import annotations

import pytest

from benchmarks.helpers.cluster.bottleneck import bottleneck
from benchmarks.helpers.cluster.modes import Mode
from benchmarks.helpers.cluster.report import Row

SYNC = Mode(4, 4, "nccl", 0, ())
ASYNC = Mode(4, 4, "nccl", 1, ())
STORE = Mode(4, 4, "object_store", 0, ())
SHARED = Mode(8, 8, "ipc", 0, (), colocated=True)
SHARED_STORE = Mode(8, 8, "object_store", 0, (), colocated=True)


def row(
    mode: Mode,
    speed: float = 100.0,
    rollout: float = 0.0,
    update: float = 0.0,
    sync: float = 0.0,
    parity: float = 0.0,
    engines_idle: float = 0.3,
    rewards_idle: float = 0.9,
) -> Row:
    metrics = {
        "perf/rollout_tokens_per_second": speed,
        "time/step_seconds": rollout + update + sync + parity,
        "time/rollout_seconds": rollout,
        "time/update_seconds": update,
        "time/weight_sync_seconds": sync,
        "time/parity_seconds": parity,
        "perf/rollout_idle_fraction": engines_idle,
        "perf/reward_idle_fraction": rewards_idle,
    }
    return Row(mode, None, metrics)


@pytest.mark.parametrize(
    ("rows", "what", "setting"),
    [
        ([row(SYNC, rollout=6, update=4)], "generation, 60% of", "train.max_staleness to 1, so that"),
        ([row(ASYNC, rollout=6, update=4)], "generation, 60% of", "rollout.actors to more than 4."),
        (
            [row(SYNC, rollout=6, update=4), row(ASYNC, speed=50)],
            "generation, 60% of",
            "rollout.actors to more than 4.",
        ),
        (
            [row(ASYNC, rollout=6, update=4), row(Mode(2, 6, "nccl", 1, ()), speed=50)],
            "generation, 60% of",
            "rollout.actors to more than 4, on more devices: another split of these was slower.",
        ),
        ([row(SHARED, rollout=6, update=4)], "generation, 60% of", "rollout.engine.gpu_memory_utilization to more"),
        ([row(ASYNC, rollout=1, update=8, sync=1)], "the update, 80% of", "learner.world_size to more than 4."),
        (
            [row(ASYNC, rollout=1, update=8, sync=1), row(Mode(7, 1, "nccl", 1, ()), speed=50)],
            "the update, 80% of",
            "learner.world_size to more than 4, on more devices",
        ),
        # That it is on shared GPUs with more ranks says nothing about a split.
        ([row(ASYNC, update=8, sync=1), row(SHARED, speed=50)], "the update", "learner.world_size to more than 4."),
        ([row(SHARED, rollout=1, update=8)], "the update, 89% of", "learner.micro_batch_tokens to as many"),
        ([row(STORE, rollout=1, update=1, sync=8)], "the weight sync, 80% of", "train.prompts_per_step to more"),
        (
            [row(STORE, rollout=1, update=1, sync=8), Row(SYNC, failed="no NCCL")],
            "the weight sync, 80% of",
            "cluster.weight_transport to nccl, once",
        ),
        ([row(SHARED_STORE, update=1, sync=8)], "the weight sync", "cluster.weight_transport to ipc"),
        ([row(ASYNC, update=1, parity=3)], "the parity gate, 75% of", "parity.probe_prompts to 1"),
        ([row(SYNC, rollout=6, update=4, rewards_idle=0.1)], "the scoring of completions", "reward.actors"),
        ([row(SYNC, rollout=6, update=4, engines_idle=0.9)], "the driver, which reads images", "data.image_size"),
    ],
)
def test_each_bottleneck_is_named_with_its_setting(rows: list[Row], what: str, setting: str) -> None:
    said = bottleneck(rows)
    assert said.startswith(f"Fastest is {rows[0].mode.name} with 100 tokens/s: the bottleneck is {what}"), said
    assert f"; change {setting}" in said
    assert said.endswith(".")


def test_sides_that_do_not_wait_for_each_other_have_no_bottleneck() -> None:
    said = bottleneck([row(ASYNC, rollout=0.05, update=0.9, engines_idle=0.05)])
    assert "neither side waits for the other for more than 10% of a step of 0.95 s" in said
    assert "learner.world_size above 4 and rollout.actors above 4" in said


def test_the_fastest_mode_counts_not_the_first() -> None:
    rows = [row(SYNC, speed=10, update=1), Row(SHARED, failed="out of memory"), row(STORE, speed=11, sync=1)]
    assert bottleneck(rows).startswith(f"Fastest is {STORE.name} with 11 tokens/s: the bottleneck is the weight sync")


def test_where_nothing_ran_the_first_reason_is_said() -> None:
    rows = [Row(SYNC, failed="no NCCL"), Row(SHARED, failed="out of memory")]
    assert bottleneck(rows) == f"No mode could be measured: the first, {SYNC.name}, failed with: no NCCL"
    assert bottleneck([]) == "No mode could be measured"
