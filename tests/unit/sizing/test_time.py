"""Times and prices derived by hand."""

from __future__ import annotations

import pytest

from medr1_ray.config import tiny_model_path
from medr1_ray.model.shape import ModelShape, read_shape
from medr1_ray.pool.group_ledger import room
from medr1_ray.pool.scaling import Scaling
from medr1_ray.sizing.time import best_split, epoch_cost, step_size, step_time, sync_seconds
from medr1_ray.sizing.work import learner_work, rollout_work
from tests.unit.sizing.tiny_step import SIZE, config, counted


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_shape(tiny_model_path())


def test_parts_of_a_step_add_up(shape: ModelShape) -> None:
    settings = config(
        "hardware.learner={matmul_flops_per_second: 1e9, layer_seconds: 0.5}",
        "hardware.rollout={matmul_flops_per_second: 2e9, memory_bytes_per_second: 1e8}",
        "hardware.prompt_seconds=0.1",
        "hardware.completion_seconds=0.01",
        "hardware.token_seconds=0.001",
        "hardware.sync_seconds=0.25",
        f"hardware.sync_bytes_per_second={4 * shape.parameters}",
    )
    time = step_time(settings, shape, SIZE, ranks=1, actors=2)
    update = learner_work(settings, shape, SIZE, 1)
    assert time.update_seconds == pytest.approx(counted(update) / 1e9 + 0.5 * update.layer_starts)
    rollout = rollout_work(settings, shape, SIZE, 2)
    overheads = 3 * 0.1 + 12 * 0.01 + 120 * 0.001
    assert time.rollout_seconds == pytest.approx(counted(rollout) / 2e9 + rollout.memory_bytes / 1e8 + overheads)
    assert time.weight_sync_seconds == pytest.approx(1.25)
    assert time.seconds == pytest.approx(time.rollout_seconds + time.update_seconds + 1.25)
    ahead = settings.model_copy(update={"train": settings.train.model_copy(update={"max_staleness": 1})})
    overlapped = step_time(ahead, shape, SIZE, ranks=1, actors=2)
    assert overlapped.seconds == pytest.approx(max(time.rollout_seconds, time.update_seconds) + 1.25)


def test_a_weight_sync_takes_as_long_as_its_transport(shape: ModelShape) -> None:
    rates = (
        "hardware.sync_seconds=0.25",
        f"hardware.sync_bytes_per_second={4 * shape.parameters}",
        f"hardware.nccl_bytes_per_second={16 * shape.parameters}",
        "hardware.learner.matmul_flops_per_second=1e15",
        "hardware.rollout.matmul_flops_per_second=1e15",
    )
    on_gpus = ("learner.gpus_per_rank=1", "rollout.gpus_per_actor=1")
    # The parameters are float32: all their bytes in 1 s and in 0.25 s; without a rate the fixed part is left.
    assert sync_seconds(config(*rates), shape) == pytest.approx({"object_store": 1.25, "nccl": 0.5})
    for settings, seconds in (
        (config(*rates), 1.25),
        (config(*rates, *on_gpus), 0.5),
        (config(*rates, *on_gpus, "cluster.weight_transport=object_store"), 1.25),
        (config(*rates, *on_gpus, "hardware.nccl_bytes_per_second=null"), 0.25),
    ):
        assert step_time(settings, shape, SIZE, 1, 1).weight_sync_seconds == pytest.approx(seconds)


def test_a_supervised_step_is_an_update_of_one_completion_each(shape: ModelShape) -> None:
    supervised = config("objective=sft", "hardware.learner.matmul_flops_per_second=1e9")
    size = step_size(supervised)
    assert size.group_size == 1
    time = step_time(supervised, shape, size, ranks=1, actors=1)
    assert time.seconds == time.update_seconds > 0


def test_the_best_split_balances_what_overlaps(shape: ModelShape) -> None:
    """First only tokens take time, then only images in the learner: all devices except one should do that work."""
    settings = config(
        "train.max_staleness=1",
        "train.prompts_per_step=32",
        "rollout.actors=2",
        "learner.world_size=3",
        "hardware.learner.matmul_flops_per_second=1e15",
        "hardware.rollout.matmul_flops_per_second=1e15",
        "hardware.token_seconds=0.001",
    )
    best = best_split(settings, shape)
    assert (best.ranks, best.actors) == (1, 4)
    slow_learner = settings.model_copy(
        update={"hardware": settings.hardware.model_copy(update={"image_seconds_per_megapixel": 1e4})}
    )
    best = best_split(slow_learner, shape)
    assert (best.ranks, best.actors) == (4, 1)
    few = {"prompts_per_step": 32, "minibatches": 16}
    in_parts = slow_learner.model_copy(update={"train": slow_learner.train.model_copy(update=few)})
    assert best_split(in_parts, shape).ranks == 2, "every rank needs a group of each mini-batch"


@pytest.mark.parametrize(("staleness", "overlapped"), [(0, False), (3, False), (4, True)])
def test_engines_generate_during_an_update_where_that_may_be_a_whole_update_old(
    staleness: int, overlapped: bool, shape: ModelShape
) -> None:
    rates = (f"hardware.{side}.matmul_flops_per_second=1e15" for side in ("learner", "rollout"))
    settings = config("train.minibatches=4", "train.steps=400", f"train.max_staleness={staleness}", *rates)
    assert step_time(settings, shape, SIZE, ranks=1, actors=1).overlapped is overlapped
    assert Scaling.of(settings).overlapping is overlapped
    ahead = room(
        0, groups_per_step=32, versions_per_step=4, max_staleness=staleness, versions_ahead=4
    )  # what the pool may issue during an update
    assert (ahead > 0) is overlapped


def test_the_price_of_an_epoch() -> None:
    settings = config("train.steps=600", "rollout.gpus_per_actor=2", "learner.gpus_per_rank=1")
    cost = epoch_cost(settings, 36.0, ranks=2, actors=3)
    assert (cost.steps, cost.hours, cost.price) == (600, 6.0, None)
    priced = config(
        "sizing.epoch_questions=1000",
        "rollout.gpus_per_actor=2",
        "learner.gpus_per_rank=1",
        "hardware.learner.price_per_hour=4",
        "hardware.rollout.price_per_hour=1.5",
    )
    # 1000 questions are 32 steps of 32, so 0.32 h at 2 * 4 + 3 * 2 * 1.5 an hour.
    cost = epoch_cost(priced, 36.0, ranks=2, actors=3)
    assert (cost.steps, cost.hours) == (32, 0.32)
    assert cost.price == pytest.approx(0.32 * 17)


def test_assumptions_of_a_step() -> None:
    assert step_size(config()).completion_tokens == 8
    assumed = step_size(config("sizing.completion_tokens=4.5", "sizing.prompt_text_tokens=48"))
    assert (assumed.completion_tokens, assumed.text_tokens) == (4.5, 48)


def test_times_without_rates_are_refused(shape: ModelShape) -> None:
    with pytest.raises(ValueError, match="matmul_flops_per_second must be set"):
        step_time(config(), shape, SIZE, 1, 1)
