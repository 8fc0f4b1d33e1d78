"""Counted work against torch's own counter, and times derived by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.model.operations import Work, head_forward, language_forward, layer_weights, vision_forward
from medr1_ray.model.shape import ModelShape, read_shape
from medr1_ray.sizing.memory import layer_activation_bytes
from medr1_ray.sizing.report import dry_run
from medr1_ray.sizing.time import best_split, epoch_cost, step_size, step_time
from medr1_ray.sizing.work import StepSize, learner_work, rollout_work
from tests.repository import REPOSITORY

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_shape(tiny_model_path())


def config(*overrides: str) -> Config:
    ours = ("loss.kl_beta=0", "train.prompts_per_step=32", "rollout.max_tokens=8")
    return load_config([CONFIGS / "phantom_cpu.yaml"], (*ours, *overrides))


def counted(work: Work) -> float:
    return work.matmul_flops + work.attention_flops


def test_operations_are_those_that_torch_counts(shape: ModelShape) -> None:
    """3 rows of 40 tokens, the logits of one row, 2 images of 84 pixels."""
    settings = AutoConfig.from_pretrained(tiny_model_path(), attn_implementation="eager")
    model = AutoModelForImageTextToText.from_config(settings)
    with torch.no_grad(), FlopCounterMode(display=False) as language:
        hidden = model.model.language_model(
            inputs_embeds=torch.zeros(3, 40, 128),
            position_ids=torch.zeros(3, 3, 40, dtype=torch.long),
            attention_mask={"full_attention": None},
            use_cache=False,
        ).last_hidden_state
    with torch.no_grad(), FlopCounterMode(display=False) as head:
        model.lm_head(hidden[0])
    with torch.no_grad(), FlopCounterMode(display=False) as vision:
        model.model.visual(torch.zeros(72, 1176), grid_thw=torch.tensor([[1, 6, 6], [1, 6, 6]]))
    assert language.get_total_flops() == counted(language_forward(shape, 3, 40))
    assert head.get_total_flops() == counted(head_forward(shape, 40))
    assert vision.get_total_flops() == counted(vision_forward(shape, 2, 84))


def test_weights_of_a_layer() -> None:
    shape = read_shape(CONFIGS / "models/qwen2_vl_2b")
    # 2 * 1536^2 + 2 * 1536 * 256 + 3 * 1536 * 8960
    assert layer_weights(shape.language, shape.key_value_width) == 4_718_592 + 786_432 + 41_287_680
    # 4 * 1280^2 + 2 * 1280 * 5120
    assert layer_weights(shape.vision, shape.vision.hidden) == 6_553_600 + 13_107_200


SIZE = StepSize(prompts=6, group_size=4, completion_tokens=10, image_size=84, text_tokens=50)


def test_the_learner_computes_a_prompt_once_and_three_passes(shape: ModelShape) -> None:
    assert (SIZE.visual_tokens(shape), SIZE.prompt_tokens(shape), SIZE.row_tokens(shape)) == (9, 59, 99)
    forward = language_forward(shape, 3, 99) + head_forward(shape, 3 * 40) + vision_forward(shape, 3, 84)
    work = learner_work(config("learner.micro_batch_tokens=200"), shape, SIZE, ranks=2)
    assert counted(work) == pytest.approx(3 * counted(forward))
    # Two rows of 99 tokens fit into 200, so three rows are two micro-batches of 4 + 3 layers.
    assert work.layer_starts == 2 * 7
    assert work.activation_bytes == 3 * 99 * 4 * layer_activation_bytes(
        shape.language, 4
    ) + 3 * 36 * 3 * layer_activation_bytes(shape.vision, 4)
    assert work.memory_bytes == shape.parameters * 28 / 2
    recomputed = learner_work(config("model.gradient_checkpointing=true"), shape, SIZE, ranks=2)
    assert counted(recomputed) == pytest.approx(4 * counted(forward))
    referred = learner_work(config("loss.kl_beta=0.1"), shape, SIZE, ranks=2)
    assert counted(referred) == pytest.approx(4 * counted(forward))
    adapted = learner_work(config("model.lora.rank=4"), shape, SIZE, ranks=2)
    assert adapted.matmul_flops == pytest.approx(2 * forward.matmul_flops)
    assert adapted.attention_flops == pytest.approx(3 * forward.attention_flops)
    assert adapted.memory_bytes < work.memory_bytes / 4
    frozen = learner_work(config("model.train_vision_tower=false"), shape, SIZE, ranks=2)
    assert counted(frozen) == pytest.approx(3 * counted(forward) - 2 * counted(vision_forward(shape, 3, 84)))


def test_an_engine_computes_a_prompt_once_but_for_its_last_block(shape: ModelShape) -> None:
    work = rollout_work(config(), shape, SIZE, actors=2)
    per_token = 2 * 4 * layer_weights(shape.language, 64)
    # 3 prompts of 59 tokens = 32 + 27: 27 for each of 3 further completions; 3 * 4 * 10 tokens are sampled.
    tokens = 3 * 59 + 3 * 3 * 27 + 120
    images = vision_forward(shape, 3, 84)
    assert work.matmul_flops == tokens * per_token + images.matmul_flops + head_forward(shape, 120).matmul_flops
    # Keys and values of 4 layers, 64 wide, in float32, of 59 + 5 tokens on average; the weights at 10 steps.
    assert work.memory_bytes == 120 * 64 * (2 * 4 * 64 * 4) + 10 * shape.parameters * 4
    assert work.layer_starts == 10 * 4 + 3
    halves = rollout_work(config("rollout.tensor_parallel_size=2"), shape, SIZE, actors=2)
    assert halves.matmul_flops == work.matmul_flops / 2


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


def test_a_supervised_step_is_an_update_of_one_completion_each(shape: ModelShape) -> None:
    supervised = config("objective=sft", "hardware.learner.matmul_flops_per_second=1e9")
    size = step_size(supervised)
    assert size.group_size == 1
    time = step_time(supervised, shape, size, ranks=1, actors=1)
    assert time.seconds == time.update_seconds > 0


def test_the_best_split_balances_what_overlaps(shape: ModelShape) -> None:
    """Only tokens cost, and then only images in the learner: all devices but one should do what costs."""
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


@pytest.mark.parametrize("hardware", sorted((CONFIGS / "hardware").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_dry_run_with_hardware_tells_times_and_prices(hardware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    prices = ["hardware.learner.price_per_hour=4", "hardware.rollout.price_per_hour=2"]
    text = dry_run(load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml", hardware], prices))
    time = text[text.index("\nTime (estimate") :]
    for part in ("rollout", "update", "weight sync", "step"):
        assert f"\n  {part} " in time
    assert "Best split of these devices: learner.world_size=1, rollout.actors=1" in time
    assert "; price " in time
    assert "none: hardware is not set" in dry_run(load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml"]))


def test_times_without_rates_are_refused(shape: ModelShape) -> None:
    with pytest.raises(ValueError, match="matmul_flops_per_second must be set"):
        step_time(config(), shape, SIZE, 1, 1)
