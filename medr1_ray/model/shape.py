"""The shape of a model, read from its config.json alone; memory, operations and time are estimated from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medr1_ray.model.family import family_of


@dataclass(frozen=True)
class TowerShape:
    """Shape of one transformer stack.

    `gated`: SwiGLU MLP with a gate projection, and RMSNorm; `fused`: one projection for query, key and value.
    """

    layers: int
    hidden: int
    intermediate: int
    gated: bool
    fused: bool


@dataclass(frozen=True)
class ModelShape:
    """Shape of a Qwen2-VL or Qwen2.5-VL, which determines memory and operations."""

    architecture: str
    parameters: int
    vision_parameters: int
    language: TowerShape
    vision: TowerShape
    key_value_width: int
    """Number of key-value heads times head size."""
    vocabulary: int
    patch_pixels: int
    merge_side: int
    """Side in patches of the square that is merged into one visual token."""
    language_linear_width: int
    """Sum of inputs plus outputs over the linear layers: adapters of rank r have r times as many parameters."""
    vision_linear_width: int

    def patches(self, image_size: int) -> int:
        """Return the patches of a square image, whose side the image processor rounds to whole visual tokens."""
        token_pixels = self.patch_pixels * self.merge_side
        return (max(1, round(image_size / token_pixels)) * self.merge_side) ** 2

    def visual_tokens(self, image_size: int) -> int:
        """Return the visual tokens of a square image in the language model."""
        return self.patches(image_size) // self.merge_side**2


def read_shape(folder: Path) -> ModelShape:
    """Return the shape of the model whose config.json is in `folder`; parameters are counted on torch's meta device.

    Raises:
        ValueError: there is no config.json, or it describes a model of an unknown family.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: give the checkpoint's folder as model.path, or a folder with its "
            "config.json as model.shape (configs/models/ has some)"
        )
    config = AutoConfig.from_pretrained(folder)
    family = family_of(config, folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    text, vision = config.text_config, config.vision_config
    width, intermediate = family.vision_width(vision)
    return ModelShape(
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vision_parameters=sum(parameter.numel() for parameter in model.model.visual.parameters()),
        language=TowerShape(text.num_hidden_layers, text.hidden_size, text.intermediate_size, True, fused=False),
        vision=TowerShape(
            vision.depth,
            width,
            intermediate,
            family.gated_vision,
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
