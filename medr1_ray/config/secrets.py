"""Secrets in settings: tokens, keys and passwords, which are never printed, logged or written to a file.

A secret is a text whose key says so (`hf_token`, `api_key`), or the user and password in a URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

REDACTED = "<redacted>"

_ANYWHERE = {"secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey", "authorization"}
_AT_THE_END = {"token", "key", "auth"}
# Mappings whose keys are names that others have chosen: columns of a table, labels of nodes.
_KEYS_OF_OTHERS = {"where", "labels", "columns"}
_IN_URL = re.compile(r"([A-Za-z][\w+.-]*://)[^/\s@]+@")
_IN_TEXT = re.compile(r"""([\w.-]+)(["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,{}]+)""")


def redacted(value: Any, key: str = "") -> Any:
    """Return settings, or the value of one with this dotted key, with every secret in it replaced by `REDACTED`."""
    if isinstance(value, dict):
        if key.rpartition(".")[2] in _KEYS_OF_OTHERS:
            return {name: redacted(item) for name, item in value.items()}
        return {name: redacted(item, f"{key}.{name}" if isinstance(name, str) else key) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    if isinstance(value, str):
        return REDACTED if value and _names_a_secret(key) else _IN_URL.sub(rf"\1{REDACTED}@", value)
    return value


def shown(key: str, value: Any) -> str:
    """Return the value of a setting as an error shows it."""
    return repr(redacted(value, key))


def shown_text(text: str) -> str:
    """Return a text, such as an override of the command line, without the secrets that it gives to keys."""

    def hidden(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}{REDACTED}" if _names_a_secret(found[1]) else found[0]

    return _IN_URL.sub(rf"\1{REDACTED}@", _IN_TEXT.sub(hidden, text))


def missing_secrets(settings: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys of settings that `redacted` left no more than `REDACTED` of."""
    if isinstance(settings, dict):
        for name, item in settings.items():
            yield from missing_secrets(item, f"{key}.{name}".lstrip("."))
    elif isinstance(settings, list | tuple):
        for item in settings:
            yield from missing_secrets(item, key)
    elif isinstance(settings, str) and REDACTED in settings:
        yield key


def _names_a_secret(key: str) -> bool:
    last = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.rpartition(".")[2]).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", last) if word]
    return bool(words) and (words[-1] in _AT_THE_END or not _ANYWHERE.isdisjoint(words))
