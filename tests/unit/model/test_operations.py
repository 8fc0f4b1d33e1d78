"""Counted operations against torch's FLOP counter on the running model, and against numbers derived by hand."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

from medr1_ray.config import Config, ModelSettings, tiny_model_path
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.operations import (
    ForwardFlops,
    Work,
    forward_flops,
    head_forward,
    language_forward,
    layer_weights,
    peak_flops,
    vision_forward,
)
from medr1_ray.model.packing import pack_groups, tree_mask
from medr1_ray.model.policy import Policy
from medr1_ray.model.shape import read_shape
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.types import Completions, Prompt, Question, Span
from tests.repository import REPOSITORY


def test_forward_flops_are_those_that_torch_counts():
    vocabulary = load_vocabulary(tiny_model_path())
    policy = Policy(load_model(tiny_model_path(), torch.float32, ModelSettings()), vocabulary, 1.0)
    ids = np.full(40, 300, np.int32)
    ids[3] = vocabulary.image_pad
    lengths = np.array([5, 9, 20], np.int32)
    question = Question("q", "", "", ("x", "y"), 0, "CT", "", "")
    prompt = Prompt("p", question, ids, np.zeros((140, 112, 3), np.uint8))
    completions = Completions(
        prompt_id="p",
        actor="",
        token_ids=np.full(lengths.sum(), 300, np.int32),
        rollout_logprobs=np.zeros(lengths.sum(), np.float32),
        versions=np.zeros(lengths.sum(), np.int32),
        lengths=lengths,
        truncated=np.zeros(3, np.bool_),
        texts=("", "", ""),
        visual_tokens=20,
        span=Span("", "", 0.0, 0.0),
    )
    images = ImagePatcher(tiny_model_path())([prompt.image])
    batch = pack_groups(
        [(prompt, completions)], images, vocabulary.image_pad, vocabulary.pad, policy.prompt_positions
    )
    shape = read_shape(tiny_model_path())
    found = forward_flops(shape, [(prompt, completions)])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy(batch)
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for kind, count in counts.items() if "scaled_dot_product" not in str(kind))
    # torch counts all pairs of the square mask, or none for some kernels; ours are the pairs that the mask allows.
    pairs = tree_mask(batch.segment).sum().item()
    attention = 4 * shape.language.layers * pairs * shape.language.hidden
    attention += 4 * shape.vision.layers * 80**2 * shape.vision.hidden
    # The rotary angles are a small product that is not counted.
    assert found.language.attention_flops + found.vision.attention_flops == attention
    assert found.language.matmul_flops + found.vision.matmul_flops == pytest.approx(products, rel=5e-3)


def test_passes_of_an_update():
    # A backward pass is two forward passes; a frozen tower has none, and the reference none either.
    forward = ForwardFlops(Work(matmul_flops=8.0, attention_flops=2.0), Work(matmul_flops=1.0))
    assert forward.update(config()) == 33
    frozen = config(model={"train_vision_tower": False}, loss={"kl_beta": 0.1}, updates=2)
    assert forward.update(frozen) == 2 * 31 + 11
    # Three of four mini-batches are scored once more, before the first step.
    assert forward.update(config(parts=4)) == 33 + 0.75 * 11
    # Weights with adapters have no gradient: their products count once in the backward pass.
    assert forward.update(config(model={"lora": {"rank": 4}})) == 11 + 9 + 4


def config(updates=1, parts=1, **settings):
    train = {"steps": 4, "updates_per_rollout": updates, "minibatches": parts}
    return Config.model_validate(
        {"run": {"dir": "x"}, "data": {"format": "phantoms", "root": "x"}, "train": train, **settings}
    )


def test_peaks_are_found_by_the_devices_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("cpu") is None


def counted(work: Work) -> float:
    return work.matmul_flops + work.attention_flops


def test_operations_are_those_that_torch_counts() -> None:
    """3 rows of 40 tokens, the logits of one row, 2 images of 84 pixels."""
    shape = read_shape(tiny_model_path())
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
    shape = read_shape(REPOSITORY / "configs/models/qwen2_vl_2b")
    # 2 * 1536^2 + 2 * 1536 * 256 + 3 * 1536 * 8960
    assert layer_weights(shape.language, shape.key_value_width) == 4_718_592 + 786_432 + 41_287_680
    # 4 * 1280^2 + 2 * 1280 * 5120
    assert layer_weights(shape.vision, shape.vision.hidden) == 6_553_600 + 13_107_200
