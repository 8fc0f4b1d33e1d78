"""The packed forward against transformers' own, on random tiny Qwen2-VL and Qwen2.5-VL (with window attention)."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from medr1_ray.config import ModelSettings, tiny_model_path
from medr1_ray.model.attention import SHARED_PROMPT_ATTENTION, block_mask
from medr1_ray.model.checkpoint_files import checkpoint_name, load_model
from medr1_ray.model.image_patches import FrozenFeatures, ImagePatcher
from medr1_ray.model.packing import pack_groups, pack_plain
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import BANNED_LOGIT_BIAS, Vocabulary, load_vocabulary
from medr1_ray.types import Completions, Prompt, Question, Span

VOCABULARY = Vocabulary(size=64, image_pad=60, vision_start=58, banned=(60, 61, 58, 59), stop=(2, 1), pad=1)
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 2, 4]},
    "pad_token_id": 1,
}
SHARED = {
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 58,
    "vision_end_token_id": 59,
}
VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "initializer_range": 0.2}
# (height, width): 2x3, 3x3, 4x2 and 5x4 visual tokens; windows of 2x2 visual tokens cut all but the second axis of one.
SIZES = [(56, 84), (84, 84), (112, 56), (140, 112)]


def qwen2_vl():
    config = Qwen2VLConfig(
        text_config={**TEXT, "tie_word_embeddings": True},
        vision_config={**VISION, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 32},
        tie_word_embeddings=True,
        **SHARED,
    )
    return Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl():
    vision = {
        **VISION,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "tie_word_embeddings": False},
        vision_config=vision,
        tie_word_embeddings=False,
        **SHARED,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture(scope="module", params=[qwen2_vl, qwen2_5_vl], ids=["qwen2_vl", "qwen2_5_vl"])
def policy(request):
    torch.manual_seed(0)
    return Policy(request.param().float().train(), VOCABULARY, temperature=0.7)


@pytest.fixture(scope="module")
def patch():
    return ImagePatcher(tiny_model_path())


@pytest.fixture(scope="module")
def groups(patch):
    """One prompt and three completions of unequal lengths for each image size."""
    random = np.random.default_rng(0)
    return [_group(f"p{i}", size, 9 + i, random, patch) for i, size in enumerate(SIZES)]


def _group(name, size, prompt_tokens, random, patch):
    image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    ids = random.integers(3, 58, prompt_tokens).astype(np.int32)
    ids[2:5] = [58, 60, 59]
    lengths = random.integers(1, 6, 3).astype(np.int32)
    tokens = random.integers(1, 58, lengths.sum()).astype(np.int32)
    tokens[-1] = 1  # <|endoftext|>, which is also the pad token
    question = Question(name, "/none", "What?", ("x", "y"), 0, "CT", "modality recognition", "none")
    completions = Completions(
        prompt_id=name,
        actor="rollout-0",
        token_ids=tokens,
        rollout_logprobs=np.zeros(tokens.size, np.float32),
        versions=np.zeros(tokens.size, np.int32),
        lengths=lengths,
        truncated=np.zeros(3, bool),
        texts=("", "", ""),
        visual_tokens=patch([image]).visual_tokens[0],
        span=Span("test", "test", 0.0, 0.0),
    )
    return Prompt(name, question, ids, image), completions


def packed(policy, patch, groups, pack=pack_groups, images=None):
    images = images or [prompt.image for prompt, _ in groups]
    return pack(groups, patch(images), VOCABULARY.image_pad, VOCABULARY.pad, policy.prompt_positions)


def gradients(policy, batch):
    """Gradients of a sum in which every token has another weight."""
    policy.zero_grad(set_to_none=True)
    logprobs = policy(batch)
    (logprobs * torch.linspace(-1, 1, logprobs.numel())).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}


def assert_same_gradients(found, expected):
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        # A bias of the keys has no gradient but rounding: softmax does not see a constant.
        assert error < 1e-5 or gradient.norm() < 1e-4, f"{name}: relative error {error:.1e}"
    assert sum(gradient.norm() > 1e-4 for gradient in expected.values()) > 0.8 * len(expected)


def by_transformers(policy, patch, prompt, completions):
    """Log-probabilities of each completion by the model's own forward, from nothing of ours but the patches."""
    images, ends, found = patch([prompt.image]), np.cumsum(completions.lengths), []
    at = int(np.nonzero(prompt.token_ids == 60)[0][0])
    visual = [60] * images.visual_tokens[0]
    for end, length in zip(ends, completions.lengths, strict=True):
        ids = [
            *prompt.token_ids[:at],
            *visual,
            *prompt.token_ids[at + 1 :],
            *completions.token_ids[end - length : end],
        ]
        ids = torch.tensor([[int(i) for i in ids]])
        logits = policy.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == 60).int(),
            pixel_values=images.pixel_values,
            image_grid_thw=images.grid_thw,
        ).logits[0]
        logits[:, list(VOCABULARY.banned)] += BANNED_LOGIT_BIAS
        logprobs = (logits / policy.head.temperature).log_softmax(-1)
        found.append(logprobs[-length - 1 : -1].gather(1, ids[0, -length:, None])[:, 0])
    return torch.cat(found)


def test_shared_prompts_score_as_transformers_does(policy, patch, groups):
    with torch.no_grad():
        found = policy(packed(policy, patch, groups))
        expected = torch.cat([by_transformers(policy, patch, *group) for group in groups])
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_shared_prompts_have_the_gradients_of_plain_rows(policy, patch, groups):
    expected = gradients(policy, packed(policy, patch, groups, pack_plain))
    assert_same_gradients(gradients(policy, packed(policy, patch, groups)), expected)


def test_a_gpus_attention_has_the_logprobs_and_gradients_of_plain_rows(policy, patch, groups, monkeypatch):
    # FlexAttention without its compiler: the same arithmetic, forward and backward. On a CPU torch refuses to begin,
    # for its compiler has no backward pass there; the plain one has.
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
    plain = packed(policy, patch, groups, pack_plain)
    with torch.no_grad():
        expected = policy(plain)
    expected_gradients = gradients(policy, plain)
    calls = []
    monkeypatch.setattr("medr1_ray.model.policy.shared_prompt_mask", lambda s: calls.append(s) or block_mask(s))
    policy.model.set_attn_implementation({"text_config": SHARED_PROMPT_ATTENTION})
    try:
        batch = packed(policy, patch, groups)
        with torch.no_grad():
            torch.testing.assert_close(policy(batch), expected, rtol=1e-5, atol=1e-5)
        assert_same_gradients(gradients(policy, batch), expected_gradients)
    finally:
        policy.model.set_attn_implementation({"text_config": "sdpa"})
    assert calls


@pytest.mark.parametrize("order", [[0], [1, 0], [2, 0, 3], [3, 2, 1, 0]])
def test_image_i_belongs_to_prompt_i_at_every_batch_size(policy, patch, groups, order):
    chosen = [groups[i] for i in order]
    with torch.no_grad():
        found = policy(packed(policy, patch, chosen))
        alone = torch.cat([policy(packed(policy, patch, [group])) for group in chosen])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


def test_a_frozen_towers_features_give_the_same(policy, patch, groups):
    batch = packed(policy, patch, groups)
    policy.model.model.visual.requires_grad_(False)
    frozen = Policy(policy.model, VOCABULARY, policy.head.temperature, FrozenFeatures())
    try:
        torch.testing.assert_close(frozen(batch), policy(batch), rtol=1e-5, atol=1e-5)
        loss_weights = torch.linspace(-1, 1, batch.targets.numel())
        found, expected = [], []
        for model, gradients_of in ((frozen, found), (policy, expected)):
            model.zero_grad()
            (model(batch) * loss_weights).sum().backward()
            gradients_of += [p.grad for p in model.model.model.language_model.parameters()]
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    finally:
        policy.model.model.visual.requires_grad_(True)


def test_the_image_matters(policy, patch, groups):
    # Another image of the same size: every token that follows it changes.
    (prompt, completions) = groups[1]
    with torch.no_grad():
        found = policy(packed(policy, patch, [(prompt, completions)]))
        other = policy(packed(policy, patch, [(prompt, completions)], images=[255 - prompt.image]))
    assert ((found - other).abs() > 1e-3).all()


def test_banned_tokens_are_all_but_impossible(policy, patch, groups):
    prompt, completions = groups[0]
    banned = np.full_like(completions.token_ids, VOCABULARY.banned[1])
    with torch.no_grad():
        logprobs = policy(packed(policy, patch, [(prompt, _replaced(completions, banned))]))
    # -100 / 0.7 = -143, and logits of this model are within some tens of each other.
    assert (logprobs < -80).all()


def _replaced(completions, tokens):
    return Completions(**{**vars(completions), "token_ids": tokens})


def test_logits_in_chunks_give_the_same(policy, patch, groups):
    batch = packed(policy, patch, groups)
    expected, expected_gradients = policy(batch).detach(), gradients(policy, batch)
    whole = policy.head.chunk_tokens
    policy.head.chunk_tokens = 4
    try:
        torch.testing.assert_close(policy(batch).detach(), expected)
        assert_same_gradients(gradients(policy, batch), expected_gradients)
    finally:
        policy.head.chunk_tokens = whole


def test_gradient_checkpointing_gives_the_same(policy, patch, groups):
    batch = packed(policy, patch, groups)
    expected = gradients(policy, batch)
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        assert_same_gradients(gradients(policy, batch), expected)
    finally:
        policy.model.gradient_checkpointing_disable()


def test_checkpoint_names_are_those_of_transformers(policy, tmp_path):
    from safetensors import safe_open

    policy.model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        expected = set(file.keys())
    assert {checkpoint_name(name) for name, _ in policy.model.named_parameters()} == expected


def test_patches_are_those_of_the_checkpoints_processor(patch):
    random = np.random.default_rng(1)
    # The second size is not a multiple of 28 and is resized.
    images = [
        random.integers(0, 256, size, dtype=np.uint8) for size in [(84, 84, 3), (101, 75, 3), (84, 84, 3)]
    ]
    found = patch(images)
    processor = AutoProcessor.from_pretrained(tiny_model_path())
    expected = processor.image_processor([Image.fromarray(image) for image in images], return_tensors="pt")
    assert found.grid_thw.tolist() == expected["image_grid_thw"].tolist()
    assert found.visual_tokens == (9, 12, 9)  # 101 x 75 becomes 112 x 84
    torch.testing.assert_close(found.pixel_values, expected["pixel_values"])


class TestLoadModel:
    def test_a_frozen_tower_learns_nothing(self):
        model = load_model(tiny_model_path(), torch.float32, ModelSettings(train_vision_tower=False))
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}

    def test_dtype(self):
        model = load_model(tiny_model_path(), torch.bfloat16, ModelSettings())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def test_sliding_window_is_refused(self, tmp_path):
        model = qwen2_vl()
        model.config.text_config.layer_types = ["sliding_attention", "full_attention"]
        model.config.text_config.sliding_window = 16
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="sliding-window"):
            load_model(tmp_path, torch.float32, ModelSettings())


class TestVocabulary:
    def test_of_the_tiny_model(self):
        vocabulary = load_vocabulary(tiny_model_path())
        tokenizer = AutoProcessor.from_pretrained(tiny_model_path()).tokenizer
        names = tokenizer.convert_ids_to_tokens(list(vocabulary.banned))
        assert set(names) == {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}
        assert tokenizer.convert_ids_to_tokens(list(vocabulary.stop)) == ["<|im_end|>", "<|endoftext|>"]
        assert set(vocabulary.logit_bias) == set(vocabulary.banned)

    def test_a_model_without_images_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
        with pytest.raises(ValueError, match="image_token_id"):
            load_vocabulary(tmp_path)
