"""Of which kind the values in a model folder's small files must be.

Readers of these files fail on a value of another kind with an error that names neither file nor key, or not before an
image is read or a question is written. Most numbers of config.json are missing here: transformers names them itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OF_THE_SOURCE = "copy it from the model that this one was made from"
_SHOWN = 100


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a function."""

    allowed: str
    fits: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, which true and false are not."""
    return type(value) in (int, float) and -math.inf < value < math.inf


def _is_token(value: Any) -> bool:
    return isinstance(value.get("content") if isinstance(value, dict) else value, str)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list | dict) and all(map(_is_token, value.values() if isinstance(value, dict) else value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number above 0", lambda value: type(value) is int and value > 0)
POSITIVE = Kind("a number above 0", lambda value: is_number(value) and value > 0)
_MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
_TOKEN = Kind("a text, or a mapping with a text as content", _is_token)
_TOKENS = Kind("a list or a mapping of tokens, each a text or a mapping with a text as content", _are_tokens)
_TEMPLATE = Kind("a text, or several templates by name", lambda value: isinstance(value, str | list | dict))
_TYPES = ("float64", "float32", "float16", "bfloat16")
_TYPE = Kind(", ".join(_TYPES), lambda value: value in _TYPES)

_OF_A_MODEL = {
    **dict.fromkeys(("text_config", "vision_config", "rope_parameters", "rope_scaling"), _MAPPING),
    **dict.fromkeys(("dtype", "torch_dtype"), _TYPE),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"), COUNT),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), COUNT),
    **dict.fromkeys(("depth", "embed_dim", "num_heads", "in_channels", "out_hidden_size"), COUNT),
    **dict.fromkeys(("patch_size", "spatial_merge_size", "temporal_patch_size"), COUNT),
    **dict.fromkeys(("mlp_ratio", "rope_theta"), POSITIVE),
    "tie_word_embeddings": FLAG,
    "rope_type": TEXT,
}
# The settings of the image processor itself are compared in `limits.py`, as transformers has put them together.
_OF_A_PROCESSOR = {
    **dict.fromkeys(("image_processor", "video_processor", "size"), _MAPPING),
    **dict.fromkeys(("image_processor_type", "video_processor_type", "processor_class"), TEXT),
    "chat_template": _TEMPLATE,
}
_OF_A_TOKENIZER = {
    **dict.fromkeys(("tokenizer_class", "processor_class"), TEXT),
    **dict.fromkeys((f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), _TOKEN),
    **dict.fromkeys(("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"), _TOKENS),
    "model_max_length": POSITIVE,
    "chat_template": _TEMPLATE,
}
_KINDS = {
    "config.json": _OF_A_MODEL,
    "preprocessor_config.json": _OF_A_PROCESSOR,
    "processor_config.json": _OF_A_PROCESSOR,
    "tokenizer_config.json": _OF_A_TOKENIZER,
}
# Elsewhere null is as if the key were not there; transformers fails by these, or makes a model of its own sizes.
_NEVER_NULL = {"text_config", "vision_config"} | {
    f"{part}_config.rope_parameters.{key}" for part in ("text", "vision") for key in ("rope_theta", "rope_type")
}


def check_kinds(file: Path, settings: Mapping[str, Any], inside: str = "") -> None:
    """Raise ValueError if a value that matters is of a wrong kind, also in the mappings in `settings`."""
    kinds = _KINDS.get(file.name, {})
    for key, value in settings.items():
        if key in kinds and (value is not None or inside + key in _NEVER_NULL):
            check_value(file, inside + key, value, kinds[key])
        if isinstance(value, dict):
            check_kinds(file, value, f"{inside}{key}.")


def check_value(file: Path, key: str, value: Any, kind: Kind) -> None:
    """Raise ValueError if the value of a key in a file is not of a kind."""
    if not kind.fits(value):
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise ValueError(f"{file}: {key} is {shown}; allowed: {kind.allowed}; {OF_THE_SOURCE}")
