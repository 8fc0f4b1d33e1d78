"""The settings that vLLM and DeepSpeed know, read from their sources: importing either takes seconds.

Both ignore or refuse a wrong name only after everything has started: DeepSpeed trains on without the setting.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from medr1_ray.config.secrets import shown

# Types that are checked; a whole number may be written as 5e8.
_PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: not isinstance(value, bool) and isinstance(value, int | float) and value == int(value),
    "float": lambda value: not isinstance(value, bool) and isinstance(value, int | float),
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "None": lambda value: value is None,
}
# How DeepSpeed names a key in its sources: as a constant, or where it reads it.
_NAMED = re.compile(
    r"""^[A-Z_0-9]+\ =\ ["']([a-z_0-9]+)["']
    | \b(?:param_dict|ds_config|config)(?:\.get\(|\[)["']([a-z_0-9]+)["']
    | ["']([a-z_0-9]+)["']\ in\ (?:param_dict|ds_config|config)\b""",
    re.MULTILINE | re.VERBOSE,
)


def require_known_keys(library: str, where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for a key that the library does not know; does nothing where the library is not installed.

    Where `known` maps keys to the text of their types, a value of another plain type is refused as well.
    """
    for key, value in given.items():
        if known and key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"remove it, or look it up in {library}'s documents"
            raise ValueError(f"{where}.{key}={shown(str(key), value)} is not a setting of {library}; {hint}")
        kinds = [kind.strip() for kind in str(known[key]).split("|")] if isinstance(known, Mapping) and known else []
        if kinds and _PLAIN.keys() >= set(kinds) and not any(_PLAIN[kind](value) for kind in kinds):
            raise ValueError(f"{where}.{key}={shown(key, value)}: {library} takes {' or '.join(kinds)} here")


def require_engine_keys(where: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a key that is not an engine argument of vLLM."""
    if given:
        fields = _fields("vllm", ("engine/arg_utils.py",))
        require_known_keys("vLLM", where, given, {**fields.get("EngineArgs", {}), **fields.get("AsyncEngineArgs", {})})


def require_deepspeed_keys(where: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a key that DeepSpeed does not read, at the top or inside of `zero_optimization`."""
    if given:
        require_known_keys("DeepSpeed", where, given, _deepspeed_keys())
        _require_fields(f"{where}.zero_optimization", given.get("zero_optimization"), "DeepSpeedZeroConfig")


def _require_fields(where: str, given: Any, name: str) -> None:
    if not isinstance(given, Mapping):
        return
    models = _fields("deepspeed", ("runtime/zero/config.py", "runtime/zero/offload_config.py"))
    fields = models.get(name, {})
    require_known_keys("DeepSpeed", where, given, fields)
    for key, value in given.items():
        for inner in models.keys() & set(re.findall(r"\w+", fields.get(key, ""))):
            _require_fields(f"{where}.{key}", value, inner)


@cache
def _fields(package: str, files: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return the annotated fields of each class, by name and alias, with the text of their annotations."""
    folder = _folder(package)
    sources = [folder / file for file in files] if folder else []
    return {
        node.name: dict(_names_of(node))
        for source in sources
        if source.is_file()
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


def _names_of(model: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node in model.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            yield node.target.id, annotation
            if isinstance(node.value, ast.Call):
                for keyword in node.value.keywords:
                    if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant):
                        yield str(keyword.value.value), annotation


@cache
def _deepspeed_keys() -> frozenset[str]:
    """Return all keys that DeepSpeed reads at the top, and some that it reads elsewhere; empty where it is missing."""
    folder = _folder("deepspeed")
    files = [*folder.rglob("*constants.py"), *folder.rglob("*config*.py")] if folder else []
    texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
    named = {name for text in texts for found in _NAMED.findall(text) for name in found if name}
    return frozenset(named | _fields("deepspeed", ("monitor/config.py",)).get("DeepSpeedMonitorConfig", {}).keys())


def _folder(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
