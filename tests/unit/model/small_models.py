"""Small random Qwen2-VL and Qwen2.5-VL, the latter with window attention."""

from __future__ import annotations

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from medr1_ray.model.vocabulary import Vocabulary

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
