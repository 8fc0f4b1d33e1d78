"""Refusal of settings by which vLLM or DeepSpeed would import Python code, or run code that comes with a model.

A configuration from somebody else must not be a program. Our own code is named in one place, `reward.functions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keys at any depth whose value, unless it is false or empty, names code or files of code.
_CODE_KEYS = re.compile(
    r"trust_remote_code|auto_map|logits_processors|model_class_overrides|log_config_file|.*_(cls|class|plugins?)"
    r"|.*module_path"
)
# Dotted names that are none of Python: hosts, files.
_OTHER_NAMES = re.compile(r".*(addr|address|host|endpoint|path|dir|file)")
_PYTHON_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*")
_OF_THE_LIBRARIES = ("vllm.", "deepspeed.", "torch.")
LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "dummy")
"""Of vLLM's, those that read safetensors of a checked model folder, or nothing."""


def require_no_code(where: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting, at any depth, that names code to import or says that a model's may run."""
    for key, value in _leaves(where, given):
        last = key.rpartition(".")[2]
        if last == "load_format" and value not in LOAD_FORMATS:
            raise ValueError(
                f"{key}={value!r}: weights are read from safetensors alone; allowed: {', '.join(LOAD_FORMATS)}"
            )
        if last == "trust_remote_code" and value:
            raise ValueError(
                f"{key}={value!r} would run Python code that comes with the model; the families of models that this "
                "package takes need none: remove it"
            )
        named = isinstance(value, str) and _is_python_name(value) and not _OTHER_NAMES.fullmatch(last)
        if named or (value and _CODE_KEYS.fullmatch(last)):
            raise ValueError(
                f"{key}={value!r} names Python code, which this package lets no setting but reward.functions import: "
                "remove it"
            )


def _is_python_name(text: str) -> bool:
    return bool(_PYTHON_NAME.fullmatch(text)) and not text.startswith(_OF_THE_LIBRARIES)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield values with their dotted keys, and mappings and lists under keys of code whole."""
    if _CODE_KEYS.fullmatch(key.rpartition(".")[2]) or not isinstance(value, Mapping | list | tuple):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    else:
        for item in value:
            yield from _leaves(key, item)
