"""The shape of a model, read from its config.json alone: what memory, operations and time are counted from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TowerShape:
    """One transformer stack: `gated` has a gate beside its MLP's up projection (SwiGLU) and RMSNorm, `fused` computes
    query, key and value in one projection."""

    layers: int
    hidden: int
    intermediate: int
    gated: bool
    fused: bool


@dataclass(frozen=True)
class ModelShape:
    """What sizes and operations follow from, of a Qwen2-VL or Qwen2.5-VL."""

    architecture: str
    parameters: int
    vision_parameters: int
    language: TowerShape
    vision: TowerShape
    key_value_width: int
    """Key-value heads times the size of a head."""
    vocabulary: int
    patch_pixels: int
    merge_side: int
    """Side, in patches, of the square that becomes one visual token."""
    language_linear_width: int
    """Inputs plus outputs of the tower's linear layers, summed: an adapter of rank r has r times as many parameters."""
    vision_linear_width: int

    def patches(self, image_size: int) -> int:
        """Patches of a square image, whose side the image processor rounds to whole visual tokens."""
        token_pixels = self.patch_pixels * self.merge_side
        return (max(1, round(image_size / token_pixels)) * self.merge_side) ** 2

    def visual_tokens(self, image_size: int) -> int:
        """Tokens of such an image in the language model."""
        return self.patches(image_size) // self.merge_side**2


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model whose config.json is in `folder`, its parameters counted on torch's meta device.

    Raises:
        ValueError: there is no config.json, or it is not that of a Qwen2-VL or Qwen2.5-VL.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: give the checkpoint's folder as model.path, or a folder with its "
            "config.json as model.shape (configs/models/ has some)"
        )
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in ("qwen2_vl", "qwen2_5_vl"):
        raise ValueError(f"{folder} holds a model of type {config.model_type!r}; allowed: qwen2_vl, qwen2_5_vl")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text, vision = config.text_config, config.vision_config
    gated = config.model_type == "qwen2_5_vl"
    width = vision.hidden_size if gated else vision.embed_dim
    return ModelShape(
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vision_parameters=sum(parameter.numel() for parameter in model.model.visual.parameters()),
        language=TowerShape(text.num_hidden_layers, text.hidden_size, text.intermediate_size, True, fused=False),
        vision=TowerShape(
            vision.depth,
            width,
            vision.intermediate_size if gated else int(width * vision.mlp_ratio),
            gated,
            fused=True,
        ),
        key_value_width=text.num_key_value_heads * text.hidden_size // text.num_attention_heads,
        vocabulary=text.vocab_size,
        patch_pixels=vision.patch_size,
        merge_side=vision.spatial_merge_size,
        language_linear_width=_linear_width(model.model.language_model),
        vision_linear_width=_linear_width(model.model.visual),
    )


def _linear_width(tower: Any) -> int:
    from torch.nn import Linear

    return sum(m.in_features + m.out_features for m in tower.modules() if isinstance(m, Linear))
