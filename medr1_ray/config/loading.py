"""Loading YAML files and `key.sub=value` overrides into one validated `Config`, and writing it back.

Files are merged in order, mappings key by key; then the overrides, in order. A mapping that is set to `{}` is cleared.
A file may name others under `base:` (one path or a list, relative to the file) and is merged over them.
`reward.functions` is replaced as a whole by a later file, since a reward left over from a base would still count.
Paths inside settings (`data.root`, `run.dir`) are relative to the current directory; a leading `~` is the home folder.

Scalars follow YAML 1.2, unlike in PyYAML: `1e-6` is a number and `off` is a string.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from medr1_ray.config.algorithm import RewardSettings
from medr1_ray.config.field_types import MayChange, NotExpandedError, Settings, expanded
from medr1_ray.config.schema import Config
from medr1_ray.config.secrets import REDACTED, missing_secrets, redacted, shown, shown_text

Keys = tuple[str, ...]

# Likeness of two names (0 to 1) from which one is taken for a slip of the other.
_CLOSE = 0.7

# Where pydantic speaks of Python.
_WORDS = {
    "path_type": "input should be a path",
    "model_type": "input should be a mapping of settings",
    "dict_type": "input should be a mapping",
    "too_short": "at least one is needed",
}

REPLACED_AS_A_WHOLE: Keys = ("reward", "functions")


def load_config(paths: Sequence[Path], overrides: Sequence[str] = (), *, as_recorded: bool = False) -> Config:
    """Return the settings in `paths`, merged in order, with `overrides` (`key.sub=value`, values in YAML) on top.

    Secrets, which `write_config` leaves out, must be given again, unless the settings are read `as_recorded`, which is
    for comparing and not for use.

    Raises:
        ValueError: with one line per problem: a file that is missing or not a YAML mapping, an unknown key (with the
            nearest valid one), an invalid value or combination; with the file that the value comes from.
    """
    # The defaults, so that an override of one function changes them instead of replacing them.
    settings: Any = {"reward": {"functions": RewardSettings().functions}}
    layers: list[tuple[Path | None, Any]] = [(path, _read(path)) for path in paths]
    for _, content in layers:
        settings = _merged(settings, content)
    for override in overrides:
        keys, value = _parse_override(override)
        settings = _with_value(settings, keys, value)
        layers.append((None, _with_value({}, keys, value)))
    if not as_recorded:
        _require_secrets(settings)
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        errors = error.errors()
        lines = [line + _named(details, layers) for line, details in zip(explain(errors), errors, strict=True)]
    # Outside the handler, so that pydantic's own error is not shown as the cause.
    if len(lines) == 1:
        raise ValueError(f"the configuration is not valid: {lines[0]}")
    raise ValueError("\n".join(["the configuration is not valid:", *(f"  {line}" for line in lines)]))


def write_config(config: Config, path: Path) -> None:
    """Write every setting but secrets, defaults included, as YAML that `load_config` reads to an equal `Config`."""
    path.write_text(config_yaml(config), encoding="utf-8")


def config_yaml(config: Config) -> str:
    """Return every setting but secrets, defaults included, as YAML in the order of `Config`."""
    settings = public_settings(config)
    # A line ends with the word that crosses the width, so it is longer by up to a word.
    text: str = yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=90)
    return text


def public_settings(config: Config) -> dict[str, Any]:
    """Return every setting in JSON's types, with `REDACTED` in place of secrets: what may be printed and stored."""
    settings: dict[str, Any] = redacted(config.model_dump(mode="json"))
    return settings


def without_secrets(config: Config) -> Config:
    """Return the settings as they are read from where they were written, for comparing."""
    return Config.model_validate(public_settings(config))


def config_digest(config: Config) -> str:
    """Return the hex BLAKE2b-128 digest of all settings but secrets, equal if and only if the configurations are."""
    text = json.dumps(public_settings(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Difference:
    """A setting, by its dotted key, with its different values in two configurations."""

    key: str
    before: Any
    now: Any


def first_difference(before: Any, now: Any, *, changeable: bool = True, key: str = "") -> Difference | None:
    """Return the first setting, in field order, in which two sections of the same class differ; None if they are equal.

    Args:
        changeable: also compare settings marked `MayChange`.
        key: dotted key of the sections themselves.
    """
    if not (isinstance(before, Settings) and type(before) is type(now)):
        return None if before == now else Difference(key, before, now)
    for name, field in type(before).model_fields.items():
        if not changeable and MayChange in field.metadata:
            continue
        inner = f"{key}.{name}" if key else name
        found = first_difference(getattr(before, name), getattr(now, name), changeable=changeable, key=inner)
        if found:
            return found
    return None


def changeable_settings(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return the dotted keys of the settings and whole sections marked `MayChange`."""
    found: list[str] = []
    for name, field in section.model_fields.items():
        if MayChange in field.metadata:
            found.append(prefix + name)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += changeable_settings(field.annotation, f"{prefix}{name}.")
    return found


def _require_secrets(settings: Any) -> None:
    key = next(missing_secrets(settings), None)
    if key:
        raise ValueError(
            f"{key} was a secret, which is not written to files ({REDACTED}); give it again with {key}=VALUE, or do "
            f"without it ({key}=null)"
        )


class _Loader(yaml.SafeLoader):
    """A loader with YAML 1.2 scalars that refuses duplicate keys."""

    # Empty, so that the resolvers of YAML 1.1 are not inherited.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own name

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a mapping or a list", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes a string exactly where `_Loader` would read something else."""

    # The same dict object, which is filled below.
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


# PyYAML's own resolvers follow YAML 1.1, where `1e-6` is a string and `off` is false.
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
):
    # PyYAML tries only the resolvers that are registered for a scalar's first character.
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        # Not all of its text, which quotes the line: that may hold a secret.
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = f"{getattr(error, 'problem', None) or type(error).__name__}{where}"
        raise ValueError(f"{source} is not valid YAML: {problem}; put a text with braces or colons in quotes") from None


def _read(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the mapping in `path`, merged over its bases."""
    path = path.resolve()
    if path in below:
        raise ValueError(f"{path} is its own base: {' -> '.join(str(p) for p in (*below, path))}")
    named = f" (named as a base by {below[-1]})" if below else ""
    if path.is_dir():
        raise ValueError(f"the configuration file {path} is a folder{named}; give a YAML file")
    if not path.is_file():
        raise ValueError(f"the configuration file {path} does not exist{named}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ValueError(f"the configuration file {path} cannot be read{named}: {reason}; give a YAML file") from None
    content = _parse_yaml(text, str(path)) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of settings, not {type(content).__name__}")
    given = content.pop("base", [])
    bases = given if isinstance(given, list) else [given]
    if not all(isinstance(base, str) and base and "\0" not in base for base in bases):
        raise ValueError(f"{path}: base={given!r}: give the path of another YAML file, or a list of paths")
    settings: dict[str, Any] = {}
    for base in bases:
        try:
            settings = _merged(settings, _read(path.parent / expanded(base), (*below, path)))
        except NotExpandedError as error:
            raise ValueError(f"{path}: base={base!r}: {error}") from None
    merged: dict[str, Any] = _merged(settings, content)
    return merged


def _parse_override(override: str) -> tuple[Keys, Any]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    given = repr(shown_text(override))
    if not equals or not all(keys):
        raise ValueError(f"the override {given} is not of the form key.sub=value, e.g. train.steps=100")
    return keys, _parse_yaml(text, f"the value of the override {given}")


def _merged(old: Any, new: Any, where: Keys = ()) -> Any:
    # An override of a single function ends below this key, so it is merged. An empty mapping has nothing to merge, so
    # it clears; but an empty file (`where` is then empty) changes nothing.
    if not (isinstance(old, dict) and isinstance(new, dict)) or where == REPLACED_AS_A_WHOLE or (where and not new):
        return new
    return old | {key: _merged(old.get(key), value, (*where, key)) for key, value in new.items()}


def _with_value(settings: Any, keys: Keys, value: Any, where: Keys = ()) -> Any:
    if not keys:
        return _merged(settings, value, where)
    children = settings if isinstance(settings, dict) else {}
    key, *rest = keys
    return children | {key: _with_value(children.get(key), tuple(rest), value, (*where, key))}


def explain(errors: Sequence[ErrorDetails], model: type[BaseModel] = Config) -> list[str]:
    """Return one line for each pydantic error of `model`: the key, the value given and what is allowed."""
    unknown = [details["loc"][:-1] if details["type"] == "extra_forbidden" else None for details in errors]
    # What a group of settings has is said once, with the first key that it does not have.
    return [
        _explain(details, model, allowed=group not in unknown[:number])
        for number, (details, group) in enumerate(zip(errors, unknown, strict=True))
    ]


def _explain(details: ErrorDetails, model: type[BaseModel], *, allowed: bool) -> str:
    keys = tuple(str(part) for part in details["loc"])
    dotted = ".".join(keys)
    if details["type"] == "extra_forbidden":
        known = list(_settings_keys(model))
        names = ", ".join(key.split(".")[-1] for key in known if tuple(key.split(".")[:-1]) == keys[:-1])
        near = _nearest_key(dotted, known)
        hint = f"; did you mean {near}?" if near else ""
        group = f" ({'.'.join(keys[:-1]) or 'the top level'} has: {names})" if allowed else ""
        return f"{dotted} is not a setting{hint}{group}"
    if details["type"] == "missing":
        return f"{dotted} is required but missing"
    message = _WORDS.get(details["type"]) or details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error":  # from a validator of several settings, whose message names them
        return message
    return f"{dotted}={shown(dotted, details['input'])}: {message[0].lower()}{message[1:]}"


def _named(details: ErrorDetails, layers: Sequence[tuple[Path | None, Any]]) -> str:
    """Return the file that gave the value of an error, as the end of its line; empty for overrides and defaults."""
    given = (path for path, content in reversed(layers) if details["loc"] and _gives(content, details["loc"]))
    path = next(given, None)
    return f" (in {path})" if path else ""


def _gives(content: Any, keys: Sequence[int | str]) -> bool:
    """Whether settings have a value under these keys, which may go on into the value or name its type."""
    for key in keys:
        if not isinstance(content, dict):
            return True
        if key not in content:
            return False
        content = content[key]
    return True


def _settings_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in get_args(field.annotation) or (field.annotation,):  # a section may be optional (`| None`)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _settings_keys(kind, f"{prefix}{name}.")


def _nearest_key(dotted: str, known: Sequence[str]) -> str | None:
    """Return the key that was probably meant; None where no name comes close."""

    def likeness(candidate: str) -> tuple[float, float]:
        last = SequenceMatcher(None, dotted.split(".")[-1], candidate.split(".")[-1]).ratio()
        return last, SequenceMatcher(None, dotted, candidate).ratio()

    found = max(known, key=lambda candidate: sum(likeness(candidate)))
    return found if likeness(found)[0] >= _CLOSE else None
