"""An append-only JSON Lines file that survives being cut off in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medr1_ray.base.atomic_files import cut_torn_line, naming
from medr1_ray.base.json_files import read_rows


class AppendLog:
    """An append-only JSON Lines file.

    `rows` holds the complete lines found when the file was opened, followed by those appended since. A last line
    without a line break was being written when the process died; it is removed from the file.

    Raises:
        ValueError: another line is damaged, or lacks a key that every row has, `needed`.
    """

    def __init__(self, path: Path, needed: Sequence[str] = ()) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self.rows: list[dict[str, Any]] = read_rows(path, needed)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows and flush them to disk (fsync)."""
        new = list(rows)
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            file.flush()
            # Rows may have cost minutes of engine time, so they should also survive a crash of the machine.
            os.fsync(file.fileno())
        self.rows += new
