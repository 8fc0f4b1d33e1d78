"""Work of a step, counted by hand."""

from __future__ import annotations

import pytest

from medr1_ray.config import tiny_model_path
from medr1_ray.model.operations import head_forward, language_forward, layer_weights, vision_forward
from medr1_ray.model.shape import ModelShape, read_shape
from medr1_ray.sizing.memory import layer_activation_bytes
from medr1_ray.sizing.work import learner_work, rollout_work
from tests.unit.sizing.tiny_step import SIZE, config, counted


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_shape(tiny_model_path())


def test_the_learner_computes_a_prompt_once_and_three_passes(shape: ModelShape) -> None:
    assert (SIZE.visual_tokens(shape), SIZE.prompt_tokens(shape)) == (9, 59)
    assert (SIZE.rows(shape, 99), SIZE.row_tokens(shape, 99)) == (1, 99)
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
    cut = learner_work(config("train.minibatches=2", "learner.micro_batch_tokens=200"), shape, SIZE, ranks=2)
    assert counted(cut) == pytest.approx(3.5 * counted(forward)), "half of the rows are scored before the first step"
    assert cut.memory_bytes == 2 * work.memory_bytes, "two optimizer steps"
    # Three rows are one and a half to a mini-batch, in one micro-batch each; half of the passes once more.
    assert cut.layer_starts == 2 * 7
    adapted = learner_work(config("model.lora.rank=4"), shape, SIZE, ranks=2)
    assert adapted.matmul_flops == pytest.approx(2 * forward.matmul_flops)
    assert adapted.attention_flops == pytest.approx(3 * forward.attention_flops)
    assert adapted.memory_bytes < work.memory_bytes / 4
    frozen = learner_work(config("model.train_vision_tower=false"), shape, SIZE, ranks=2)
    assert counted(frozen) == pytest.approx(3 * counted(forward) - 2 * counted(vision_forward(shape, 3, 84)))


def test_a_group_that_is_cut_over_rows_computes_its_prompt_in_each(shape: ModelShape) -> None:
    # 59 tokens of the prompt leave room for three completions of ten, so four are two and two; for one at the least.
    assert (SIZE.rows(shape, 98), SIZE.row_tokens(shape, 98)) == (2, 79)
    assert (SIZE.rows(shape, 60), SIZE.row_tokens(shape, 60)) == (4, 69)
    language = language_forward(shape, 6, 79) + head_forward(shape, 3 * 40)
    work = learner_work(config("learner.micro_batch_tokens=98"), shape, SIZE, ranks=2)
    assert counted(work) == pytest.approx(3 * counted(language + vision_forward(shape, 6, 84)))
    assert work.layer_starts == 6 * 7, "each row is a micro-batch"
    assert work.activation_bytes == 6 * 79 * 4 * layer_activation_bytes(
        shape.language, 4
    ) + 6 * 36 * 3 * layer_activation_bytes(shape.vision, 4)
    frozen = "learner.micro_batch_tokens=98", "model.train_vision_tower=false"
    work = learner_work(config(*frozen), shape, SIZE, ranks=2)
    assert counted(work) == pytest.approx(3 * counted(language) + counted(vision_forward(shape, 3, 84)))


def test_an_engine_computes_a_prompt_once_but_for_its_last_block(shape: ModelShape) -> None:
    work = rollout_work(config(), shape, SIZE, actors=2)
    per_token = 2 * 4 * layer_weights(shape.language, 64)
    # 3 prompts of 59 = 32 + 27 tokens: 27 again for each of 3 further completions; 3 * 4 * 10 tokens are sampled.
    tokens = 3 * 59 + 3 * 3 * 27 + 120
    images = vision_forward(shape, 3, 84)
    assert work.matmul_flops == tokens * per_token + images.matmul_flops + head_forward(shape, 120).matmul_flops
    # Keys and values of 4 layers, 64 wide, in float32, of 59 + 5 tokens on average; the weights at 10 steps.
    assert work.memory_bytes == 120 * 64 * (2 * 4 * 64 * 4) + 10 * shape.parameters * 4
    assert work.layer_starts == 10 * 4 + 3
    halves = rollout_work(config("rollout.tensor_parallel_size=2"), shape, SIZE, actors=2)
    assert halves.matmul_flops == work.matmul_flops / 2
