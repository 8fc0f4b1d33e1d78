"""The packed forward pass against transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medr1_ray.config import tiny_model_path
from medr1_ray.model.attention import SHARED_PROMPT_ATTENTION, block_mask
from medr1_ray.model.image_patches import FrozenFeatures, ImagePatcher
from medr1_ray.model.packing import pack_groups, pack_plain
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import BANNED_LOGIT_BIAS
from medr1_ray.types import Completions, Prompt, Question, Span
from tests.unit.model.small_models import VOCABULARY, qwen2_5_vl, qwen2_vl

# (height, width): 2x3, 3x3, 4x2 and 5x4 visual tokens; windows of 2x2 tokens do not divide all of these evenly.
SIZES = [(56, 84), (84, 84), (112, 56), (140, 112)]


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
    """Return the gradients of a sum in which every token has a different weight."""
    policy.zero_grad(set_to_none=True)
    logprobs = policy(batch)
    (logprobs * torch.linspace(-1, 1, logprobs.numel())).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}


def assert_same_gradients(found, expected):
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        # A bias of the keys has only rounding for a gradient: it shifts all scores of a query, which softmax ignores.
        assert error < 1e-5 or gradient.norm() < 1e-4, f"{name}: relative error {error:.1e}"
    assert sum(gradient.norm() > 1e-4 for gradient in expected.values()) > 0.8 * len(expected)


def by_transformers(policy, patch, prompt, completions):
    """Return each completion's log-probabilities by the model's own forward pass; only the patches are ours."""
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
    # FlexAttention without its compiler: the same arithmetic, forward and backward. On a CPU torch's device check
    # refuses it, because the compiled kernel has no backward pass there; the uncompiled one has.
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
