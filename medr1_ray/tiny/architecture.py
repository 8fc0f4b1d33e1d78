"""Architecture of the tiny model: Qwen2-VL's own classes with about 1.6 million parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from medr1_ray.tiny.tokenizer import token_id

PATCH = 14
MERGE = 2
TEMPORAL = 2

# Constants of `_wire_induction`.
EMBEDDING_STD = 0.1
LOCAL_FREQUENCIES, LOCAL_STRENGTH = 5, 5.0  # of the heads that look back a fixed distance: rotary frequencies, biases
MATCH_SKIPS, MATCH_STRENGTH = 5, 1.5  # of the heads that match tokens: unused rotary frequencies, scale of the weights
GATHER_GAIN = 4.0

# 56 x 56 is Qwen2-VL's own minimum: an 84-pixel image stays as it is (9 visual tokens).
# 392 x 392 is Med-R1's image after the processor (196 visual tokens).
MIN_PIXELS = 56 * 56
MAX_PIXELS = 392 * 392


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """Return the configuration for the vocabulary of `tokenizer`."""
    end_of_turn = token_id(tokenizer, "<|im_end|>")
    pad = token_id(tokenizer, "<|endoftext|>")
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "initializer_range": 0.04,
            "rms_norm_eps": 1e-6,
            # Qwen2-VL gives width the slowest frequencies (theta 1e6, sections 16/24/24). A 3 x 3 grid of visual
            # tokens needs faster ones to tell left from right; for matching words slow ones suffice.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 13]},
            "bos_token_id": None,
            "eos_token_id": end_of_turn,
            "pad_token_id": pad,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "num_heads": 4,
            "mlp_ratio": 4,
            "hidden_size": 128,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "initializer_range": 0.04,
        },
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2VLForConditionalGeneration:
    """Return a model with random weights drawn from `seed`; its attention starts as an induction circuit."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(build_config(tokenizer)).float()
    _wire_induction(model)
    model.generation_config = GenerationConfig(
        eos_token_id=[token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")],
        pad_token_id=token_id(tokenizer, "<|endoftext|>"),
    )
    return model


@torch.no_grad()
def _wire_induction(model: Qwen2VLForConditionalGeneration) -> None:
    """Initialise attention with the circuit that answers "which letter has this name?".

    To find this circuit from random weights, a model of this size needs more examples than one CPU core can process
    (induction heads: Olsson et al. 2022; structured initialisation: Trockman and Kolter 2023). All weights remain
    trainable.

    In the first layer two heads look one and two tokens back and copy what they see into separate subspaces. In the
    later layers two heads look for the token that the first subspace names, and copy the letter that the second
    subspace holds there: an option's text is two tokens after its letter.
    """
    text = model.model.language_model
    layers = text.layers
    width, size = layers[0].self_attn.hidden_size, layers[0].self_attn.head_dim
    own, one_back, two_back, wanted = torch.linalg.qr(torch.randn(width, width))[0].split(size)
    embeddings = text.embed_tokens.weight
    embeddings.normal_(std=EMBEDDING_STD)
    for subspace in (one_back, two_back):
        embeddings.sub_(embeddings @ subspace.T @ subspace)
    for layer in layers:  # scale down random outputs, so that they do not drown the wired ones
        layer.self_attn.o_proj.weight *= 0.1
        layer.mlp.down_proj.weight *= 0.1
    half, group = size // 2, layers[0].self_attn.num_key_value_groups
    heads = slice(0, group * size)
    first = layers[0].self_attn
    for projection in (first.q_proj, first.k_proj):
        projection.weight[:size] *= 0.1
    first.q_proj.weight[heads] *= 0.1
    # The biases alone, rotated by the position angles, give attention scores that peak at a fixed distance.
    turned, strength = slice(0, LOCAL_FREQUENCIES), LOCAL_STRENGTH
    first.k_proj.bias[turned] = strength
    for head, distance in enumerate((1, 2)):
        angle = distance * text.rotary_emb.inv_freq[turned]
        first.q_proj.bias[head * size :][turned] = strength * angle.cos()
        first.q_proj.bias[head * size + half :][turned] = -strength * angle.sin()
    first.v_proj.weight[:size] = own
    first.o_proj.weight[:, :size] = EMBEDDING_STD * one_back.T
    first.o_proj.weight[:, size : 2 * size] = EMBEDDING_STD * two_back.T
    # The fastest rotary pairs would disturb matches over a distance, so they are left out.
    steady = torch.ones(size)
    steady[:MATCH_SKIPS] = steady[half : half + MATCH_SKIPS] = 0.0
    gather = layers[1].self_attn
    rest = slice(group * size, 2 * group * size)
    for layer in layers[1:]:
        attention = layer.self_attn
        for keys, queries, sought in (
            (slice(0, size), heads, one_back),
            (slice(size, 2 * size), rest, wanted),
        ):
            if attention is gather and sought is wanted:
                continue
            attention.k_proj.weight[keys] = MATCH_STRENGTH * own * steady[:, None]
            attention.q_proj.weight[queries] = (MATCH_STRENGTH * sought * steady[:, None]).repeat(group, 1)
            attention.v_proj.weight[keys] = two_back
            attention.o_proj.weight[:, queries] = EMBEDDING_STD * own.T.repeat(1, group)
    gather.q_proj.weight[rest] *= 0.3
    gather.v_proj.weight[size : 2 * size] = own
    gather.o_proj.weight[:, rest] = GATHER_GAIN * EMBEDDING_STD * wanted.T.repeat(1, group)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    """Return Qwen2-VL's processor with this tokenizer and small image limits."""
    pixels = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    shape = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(pixels), **shape),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(pixels), **shape),
        chat_template=tokenizer.chat_template,
    )


def save(folder: Path, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the checkpoint and its processor files in Hugging Face's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written readable by its owner only
    build_processor(tokenizer).save_pretrained(folder)
