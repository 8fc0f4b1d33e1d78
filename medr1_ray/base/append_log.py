"""A JSON-lines file that only grows, and survives being cut off in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class AppendLog:
    """`rows` are the lines that were whole when the file was opened, and those appended since.

    A last line without its line break was being written when the process ended; it is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(path, end)
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole[:end].splitlines()]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and see them to the disk."""
        new = list(rows)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            file.flush()
            os.fsync(file.fileno())
        self.rows += new
