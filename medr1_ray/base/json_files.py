"""Reading JSON that a crash or a hand may have damaged: errors name the file, and the line of a file of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medr1_ray.base.atomic_files import whole_lines

_SHOWN = 60


def read_mapping(path: Path, advice: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Return a JSON file's mapping.

    Raises:
        ValueError: it is not a mapping in JSON, or lacks a `needed` key; ends with `advice`, what to do.
        OSError: the file cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); {advice}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is not a mapping in JSON; {advice}")
    if missing := [key for key in needed if key not in found]:
        raise ValueError(f"{path}: has no {missing[0]!r}; {advice}")
    return found


def read_rows(path: Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file, without an incomplete last line; empty without a file.

    Raises:
        ValueError: a line is not a mapping in JSON, or lacks a `needed` key.
    """
    return [_row(line, f"{path}, line {number}", needed) for number, line in enumerate(whole_lines(path), 1)]


def _row(line: bytes, where: str, needed: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    # A damaged line is never skipped: what it held would be lost without a word.
    if not isinstance(row, dict) or any(key not in row for key in needed):
        shown = line[:_SHOWN].decode(errors="replace")
        what = f"a mapping in JSON with {', '.join(needed)}" if needed else "a mapping in JSON"
        raise ValueError(f"{where}: {shown!r} is not {what}; mend this line, or remove it")
    return row
