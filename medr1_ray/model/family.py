"""What is known of each family of models: one record per `model_type` of config.json.

A new family begins here; CONTRIBUTING.md says which files read the record, and what else a family may need.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The same for all families so far; a family that differs takes them into its record.
VISION = "model.visual."
LANGUAGE = "model.language_model."
"""Prefixes of a parameter's name in transformers' model."""
# transformers 4.52 renamed its modules; the released checkpoints have the older names, and so do ours.
CHECKPOINT_PREFIXES = ((VISION, "visual."), (LANGUAGE, "model."))
"""The same prefixes in Hugging Face checkpoints."""
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""Names in checkpoints of the two tensors that may be one."""


@dataclass(frozen=True)
class Family:
    """What differs between families of Qwen's vision-language models.

    Args:
        model_type: as in config.json.
        architecture: the class in transformers and vLLM, as in config.json.
        gated_vision: the vision tower has SwiGLU MLPs and RMSNorms, of width `hidden_size`; otherwise plain MLPs and
            LayerNorms, of width `embed_dim`.
        special_tokens: attributes of the configuration with the ids that only an image may put into a prompt.
    """

    model_type: str
    architecture: str
    gated_vision: bool
    special_tokens: tuple[str, ...] = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    )

    def vision_width(self, vision: Any) -> tuple[int, int]:
        """Hidden size and MLP width of the vision tower, from its part of the configuration."""
        if self.gated_vision:
            return vision.hidden_size, vision.intermediate_size
        # In Qwen2-VL's vision_config `hidden_size` is the width of the language model; the tower's own is `embed_dim`.
        return vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio)


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "Qwen2VLForConditionalGeneration", gated_vision=False),
        Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", gated_vision=True),
    )
}


def family_of(config: Any, where: object) -> Family:
    """The family of a transformers configuration, which was read from `where`.

    Raises ValueError for a model of another family.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"{where} holds a model of type {config.model_type!r}; allowed: {', '.join(FAMILIES)}. "
            "Give a checkpoint of one of these families as model.path"
        )
    return family


def architecture_of(folder: Path) -> str:
    """Return the class of the model in a checked folder."""
    return FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]].architecture


def refuse_own_code(path: Path, settings: Any) -> None:
    """Raise ValueError if a JSON file of a model names Python code to load with it: transformers offers to run it."""
    inner = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    if isinstance(settings, dict) and "auto_map" in settings:
        raise ValueError(
            f"{path}: names Python code that comes with the model (auto_map), which is not run here; models of "
            f"{', '.join(FAMILIES)} need none: remove the key, or give a checkpoint without it"
        )
    for each in inner:
        refuse_own_code(path, each)


def checkpoint_name(name: str) -> str:
    """Return a parameter's name in Hugging Face checkpoints, given its name in the model."""
    for inside, outside in CHECKPOINT_PREFIXES:
        if name.startswith(inside):
            return outside + name.removeprefix(inside)
    return name
