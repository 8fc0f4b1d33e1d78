"""Memory estimates against numbers derived by hand, for Qwen2-VL-2B (2,208,985,600 parameters) in Med-R1's recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from medr1_ray.config import tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.model.shape import ModelShape, read_shape
from medr1_ray.sizing.memory import (
    Part,
    checkpoint_bytes,
    checkpoints_at_once,
    largest_micro_batch,
    layer_activation_bytes,
    learner_parts,
    rollout_parts,
    synced_parameters,
    tower_activation_bytes,
    weight_sync_bytes,
)
from tests.repository import REPOSITORY
from tests.unit.sizing.recipes import LANGUAGE_2B, PARAMETERS_2B, VISION_2B, VISION_TOWER_2B, recipe

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_shape(CONFIGS / "models/qwen2_vl_2b")


def by_name(parts: tuple[Part, ...]) -> dict[str, Part]:
    return {part.name: part for part in parts}


def test_the_largest_micro_batch_fills_the_token_budget() -> None:
    # A row: a prompt of 1,024 tokens and 4 completions of 256 = 2,048 tokens.
    def rows(*overrides: str) -> int:
        return largest_micro_batch(recipe(*overrides), 196).rows

    batch = largest_micro_batch(recipe(), 196)
    assert (batch.rows, batch.row_tokens, batch.tokens, batch.completion_tokens) == (4, 2048, 8192, 4096)
    assert rows("learner.micro_batch_tokens=1000") == 1
    assert rows("learner.micro_batch_tokens=100000") == 4  # all groups of the step
    assert rows("learner.world_size=2", "learner.micro_batch_tokens=100000") == 2


def test_short_prompts_put_more_images_into_a_micro_batch() -> None:
    # 5,000 // 2,048 rows with the longest prompts, 5,000 // (196 + 1,024) with prompts that have no text.
    batch = largest_micro_batch(recipe("learner.micro_batch_tokens=5000"), 196)
    assert (batch.rows, batch.images, batch.tokens, batch.completion_tokens) == (2, 4, 5000, 4 * 1024)


def test_a_group_that_is_longer_than_the_budget_is_cut_into_rows_that_fit_if_a_completion_does() -> None:
    # 16 completions of 4,096 tokens: whole, 66,560 with the prompt.
    long = "train.group_size=16", "rollout.max_tokens=4096"
    batch = largest_micro_batch(recipe(*long), 196)
    assert (batch.rows, batch.row_tokens, batch.tokens) == (1, 8192, 8192)
    assert (batch.images, batch.completion_tokens) == (1, 8192 - 196)
    alone = largest_micro_batch(recipe(*long, "learner.micro_batch_tokens=5000"), 196)
    assert (alone.rows, alone.row_tokens, alone.tokens) == (1, 1024 + 4096, 1024 + 4096)
    assert (alone.images, alone.completion_tokens) == (1, 5000 - 196)
    short = largest_micro_batch(recipe("learner.micro_batch_tokens=100"), 196)
    assert (short.tokens, short.completion_tokens) == (1024 + 256, 256)


def test_the_memory_of_activations_does_not_grow_with_the_group(shape: ModelShape) -> None:
    def activations(size: int) -> int:
        parts = by_name(learner_parts(recipe(f"train.group_size={size}", "rollout.max_tokens=1024"), shape))
        return sum(parts[name].bytes for name in parts if name.startswith(("activations", "attention", "logits")))

    assert activations(8) == activations(16) == activations(64)


def test_activations_of_one_layer() -> None:
    # bf16: (8 + 8 * 2) * 1536 + 4 * 2 * 8960 = 36,864 + 71,680
    assert layer_activation_bytes(LANGUAGE_2B, 2) == 108_544
    # bf16: 11 * 2 * 1280 + 3 * 2 * 5120 = 28,160 + 30,720
    assert layer_activation_bytes(VISION_TOWER_2B, 2) == 58_880


def saved_bytes(forward: Callable[[], object], parameters: Iterable[torch.Tensor]) -> int:
    """Return the bytes of all storages that autograd keeps after `forward`, excluding those of the parameters."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


@pytest.mark.parametrize("name", ["qwen2_vl_2b", "qwen2_5_vl_3b"])
def test_the_formula_agrees_with_what_autograd_keeps(name: str, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(CONFIGS / "models" / name)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.vocab_size = 512, 1536, 64
    text.num_attention_heads, text.num_key_value_heads = 4, 2
    text.num_hidden_layers, text.layer_types, vision.depth = 2, ["full_attention"] * 2, 2
    if name == "qwen2_vl_2b":
        vision.hidden_size = 512
    else:
        vision.out_hidden_size, vision.fullatt_block_indexes = 512, [1]
    config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).train()
    parameters = list(model.parameters())
    language, tower = model.model.language_model, model.model.visual

    def language_bytes(layers: int, tokens: int) -> int:
        language.layers = language.layers[:layers]
        embedded = torch.randn(1, tokens, 512, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
        positions = torch.arange(tokens).expand(3, 1, tokens)
        return saved_bytes(
            lambda: language(
                inputs_embeds=embedded,
                position_ids=positions,
                attention_mask={"full_attention": mask},
                use_cache=False,
            ),
            parameters,
        )

    def vision_bytes(layers: int) -> int:
        tower.blocks = tower.blocks[:layers]
        patches = torch.randn(16 * 16, 3 * 2 * 14 * 14, dtype=torch.bfloat16)
        return saved_bytes(lambda: tower(patches, grid_thw=torch.tensor([[1, 16, 16]])), parameters)

    # The difference between two layers and one, so that everything outside the layers cancels.
    of_language = (language_bytes(2, 128) - language_bytes(1, 128)) / 128
    bias_of_the_mask = 2 * 128
    assert of_language - bias_of_the_mask == pytest.approx(layer_activation_bytes(shape.language, 2), rel=0.01)
    of_vision = (vision_bytes(2) - vision_bytes(1)) / 256
    assert of_vision == pytest.approx(layer_activation_bytes(shape.vision, 2), rel=0.01)


def test_checkpointing_keeps_each_layers_input_and_one_layer() -> None:
    assert tower_activation_bytes(LANGUAGE_2B, 8192, 2, checkpointed=False) == 28 * 8192 * 108_544
    kept = tower_activation_bytes(LANGUAGE_2B, 8192, 2, checkpointed=True)
    assert kept == 28 * 8192 * 2 * 1536 + 8192 * 108_544


def test_one_rank_holds_everything(shape: ModelShape) -> None:
    parts = by_name(learner_parts(recipe(), shape))
    assert parts["parameters"].bytes == 2 * PARAMETERS_2B
    assert parts["gradients"].bytes == (4 + 2) * PARAMETERS_2B
    assert parts["optimizer"].bytes == 12 * PARAMETERS_2B
    assert parts["reference model"].bytes == 2 * PARAMETERS_2B
    assert parts["activations, language"].bytes == 704_643_072 + 889_192_448  # 28 * 8192 * 3072 + 8192 * 108,544
    assert parts["logits chunk"].bytes == 441 * 151_936 * (2 + 4 + 4)  # 2^26 // 151,936 = 441 tokens
    assert parts["attention mask"].bytes == 4 * 2048**2 * (1 + 2)
    # Float32, each pixel in two frames, in the cache and in the batch.
    images = recipe().train.prompts_per_step * 3 * recipe().data.image_size ** 2
    assert (parts["image patches"].bytes, parts["image patches"].place) == (images * 4 * 2 * 2, "main")
    assert "reduce bucket" not in parts
    assert parts["gradient copies"].bytes == 2 * 4 * PARAMETERS_2B


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "optimizer"),
    [(1, 2.0, 6.0, 3.0), (2, 2.0, 1.0, 3.0), (3, 0.5, 1.0, 3.0)],
)
def test_zero_divides_by_four_ranks(
    shape: ModelShape, stage: int, parameters: float, gradients: float, optimizer: float
) -> None:
    config = recipe("learner.world_size=4", f"learner.zero_stage={stage}")
    parts = by_name(learner_parts(config, shape))
    held = [parts[name].bytes / PARAMETERS_2B for name in ("parameters", "gradients", "optimizer")]
    assert held == [parameters, gradients, optimizer]
    assert parts["image patches"].bytes == by_name(learner_parts(recipe(), shape))["image patches"].bytes / 4
    assert parts["reduce bucket"].bytes == 2 * 200_000_000
    assert ("all-gather" in parts) == (stage == 3)
    copied = [part.bytes / PARAMETERS_2B for name, part in parts.items() if name == "gradient copies"]
    assert copied == ([] if stage == 3 else [2.0])


def test_float32_needs_no_second_gradient(shape: ModelShape) -> None:
    parts = by_name(learner_parts(recipe("model.dtype=float32"), shape))
    assert (parts["parameters"].bytes, parts["gradients"].bytes) == (4 * PARAMETERS_2B, 4 * PARAMETERS_2B)


def test_a_frozen_vision_tower_has_neither_optimizer_nor_activations(shape: ModelShape) -> None:
    parts = by_name(learner_parts(recipe("model.train_vision_tower=false"), shape))
    assert parts["optimizer"].bytes == 12 * (PARAMETERS_2B - VISION_2B)
    assert parts["activations, vision"].bytes == 0
    assert parts["parameters"].bytes == 2 * PARAMETERS_2B


def test_adapters_have_gradients_and_states_and_need_no_reference(shape: ModelShape) -> None:
    # Inputs plus outputs of a language layer: query and output 2 * 1536 each, key and value 1536 + 256 each, gate, up
    # and down 1536 + 8960 each; of a vision layer: qkv 4 * 1280, proj 2 * 1280, two of 1280 + 5120; of the merger:
    # 5120 + 5120 and 5120 + 1536.
    language = 28 * (2 * 2 * 1536 + 2 * (1536 + 256) + 3 * (1536 + 8960))
    vision = 32 * (6 * 1280 + 2 * (1280 + 5120)) + 10_240 + 6656
    assert (shape.language_linear_width, shape.vision_linear_width) == (language, vision)
    parts = by_name(learner_parts(recipe("model.lora.rank=8"), shape))
    assert parts["optimizer"].bytes == 12 * 8 * (language + vision)
    assert parts["gradients"].bytes == 6 * 8 * (language + vision)
    assert parts["parameters"].bytes == 2 * (PARAMETERS_2B + 8 * (language + vision))
    assert "reference model" not in parts
    frozen_tower = recipe("model.lora.rank=8", "model.train_vision_tower=false")
    assert by_name(learner_parts(frozen_tower, shape))["optimizer"].bytes == 12 * 8 * language


def test_supervision_has_one_completion_and_no_reference(shape: ModelShape) -> None:
    config = recipe("objective=sft")
    assert largest_micro_batch(config, 196).row_tokens == 1024 + 256
    assert "reference model" not in by_name(learner_parts(config, shape))


def test_offloading_moves_parts_to_main_memory(shape: ModelShape) -> None:
    offload = "learner.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"
    parts = by_name(learner_parts(recipe("learner.zero_stage=2", offload), shape))
    assert (parts["optimizer"].place, parts["gradients"].place) == ("main", "main")
    assert parts["parameters"].place == "device"
    assert "gradient copies" not in parts


def test_the_reference_is_sharded_placed_or_absent(shape: ModelShape) -> None:
    assert "reference model" not in by_name(learner_parts(recipe("loss.kl_beta=0"), shape))
    sharded = recipe("learner.world_size=2", "learner.zero_stage=3", "reference.sharded=true")
    assert by_name(learner_parts(sharded, shape))["reference model"].bytes == PARAMETERS_2B
    waiting = by_name(learner_parts(recipe("reference.placement=cpu"), shape))
    assert waiting["reference model"].place == "main"
    assert waiting["reference on GPU"].bytes == 2 * PARAMETERS_2B


def test_a_rollout_actor(shape: ModelShape) -> None:
    parts = by_name(rollout_parts(recipe(), shape))
    assert parts["weights"].bytes == 2 * PARAMETERS_2B
    # Keys and values of 28 layers with 2 heads of 128 in bf16, for 16 sequences of 1,280 tokens.
    assert parts["KV cache"].bytes == 2 * 28 * 2 * 128 * 2 * 16 * 1280
    halves = by_name(rollout_parts(recipe("rollout.tensor_parallel_size=2"), shape))
    assert halves["weights"].bytes == PARAMETERS_2B
    fixed = by_name(rollout_parts(recipe("rollout.gpus_per_actor=0"), shape))
    assert fixed["KV cache"].bytes == 2**30


def test_a_weight_sync_holds_the_weights_twice(shape: ModelShape) -> None:
    assert weight_sync_bytes(recipe("cluster.weight_transport=object_store"), shape) == 3 * 2 * PARAMETERS_2B


def test_adapters_leave_the_weights_where_they_are(shape: ModelShape) -> None:
    adapters = 8 * (shape.language_linear_width + shape.vision_linear_width)
    by_store = recipe("model.lora.rank=8", "cluster.weight_transport=object_store")
    assert synced_parameters(by_store, shape) == adapters
    # bfloat16: in the store and in the file, and the adapters of the version before besides.
    assert weight_sync_bytes(by_store, shape) == 2 * 2 * PARAMETERS_2B + 3 * 2 * adapters
    # Merged in float32, the adapters as they are, float32 masters and two moments.
    assert checkpoint_bytes(by_store, shape) == 4 * PARAMETERS_2B + (2 + 12) * adapters
    shared = recipe(
        "model.lora.rank=8",
        "cluster.colocated=true",
        "cluster.weight_transport=ipc",
        "learner.gpus_per_rank=0.5",
        "rollout.gpus_per_actor=0.5",
    )
    assert synced_parameters(shared, shape) == PARAMETERS_2B + adapters, "an engine that slept has lost them"
    assert synced_parameters(recipe("cluster.weight_transport=nccl"), shape) == PARAMETERS_2B


def test_weights_that_stay_on_gpus_take_no_main_memory_but_through_ipc_the_gpus(shape: ModelShape) -> None:
    shared = recipe(
        "cluster.colocated=true",
        "cluster.weight_transport=ipc",
        "learner.gpus_per_rank=0.5",
        "rollout.gpus_per_actor=0.5",
    )
    assert weight_sync_bytes(shared, shape) == 0
    exported = by_name(learner_parts(shared, shape))["exported weights"]
    assert (exported.bytes, exported.place) == (2 * PARAMETERS_2B, "device")
    assert weight_sync_bytes(recipe("cluster.weight_transport=nccl"), shape) == 0


def test_a_checkpoint_that_is_written_behind_the_training_is_copied_first(shape: ModelShape) -> None:
    for ranks in (1, 4):
        settings = f"learner.world_size={ranks}", "cluster.weight_transport=object_store"
        behind, waiting = (
            by_name(learner_parts(recipe(*settings, f"run.write_behind={value}"), shape))["checkpoint copy"]
            for value in ("true", "false")
        )
        # Weights in bfloat16, and this rank's share of masters and moments in float32; or one file of those.
        assert (behind.bytes, behind.place) == ((2 + 12 // ranks) * PARAMETERS_2B, "main")
        assert (waiting.bytes, waiting.place) == (2 * PARAMETERS_2B + 2**30, "main")


def test_a_checkpoint_has_the_weights_and_the_optimizer() -> None:
    # Files of a checkpoint of the tiny model in float32: weights, which are the masters, and moments.
    measured = 6_212_088 + 12_429_312
    tiny, shape = load_config([CONFIGS / "phantom_cpu.yaml"]), read_shape(tiny_model_path())
    assert checkpoint_bytes(tiny, shape) == pytest.approx(measured, rel=0.01)
    assert by_name(learner_parts(tiny, shape))["checkpoint copy"].bytes == checkpoint_bytes(tiny, shape)
    # In bfloat16 the masters besides.
    half = load_config([CONFIGS / "phantom_cpu.yaml"], ["model.dtype=bfloat16"])
    assert checkpoint_bytes(half, shape) == pytest.approx(6_212_088 / 2 + 18_643_888, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (["run.save_every=0"], 1),
        (["run.save_every=2"], 3),
        (["run.save_every=5"], 2),
        (["run.save_every=4"], 3),
        (["run.save_every=2", "run.evaluate_every=5"], 4),
        (["run.save_every=0", "run.save_minutes=15"], 3),
        (["run.save_every=0", "run.save_minutes=15", "train.steps=1"], 1),
        # A checkpoint is saved after all mini-batches of a batch.
        (["run.save_every=1", "train.steps=16", "train.minibatches=8"], 2),
    ],
)
def test_one_more_checkpoint_than_are_kept_is_there_for_a_moment(settings: list[str], count: int) -> None:
    given = ["train.steps=10", "run.keep_checkpoints=2", "run.evaluate_every=0", "run.save_minutes=0", *settings]
    config = load_config([CONFIGS / "phantom_cpu.yaml"], given)
    assert checkpoints_at_once(config) == count
