"""Append-only files of lines that survive being cut off in the middle of a line, and a full disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medr1_ray.base.atomic_files import cut_torn_line, naming
from medr1_ray.base.json_files import read_rows

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)



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


class GrowingFile:
    """A file of lines that a run can do without for a while: a full disk does not end it.

    Appends to `path`; lines for which there is no room are kept in memory and written with the next ones.

    `say` is told once when room runs out, and when it is there again. Lines that were being written when an earlier
    process died are cut off.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._waiting: list[str] = []
        cut_torn_line(path)

    def append(self, lines: list[str]) -> None:
        """Append lines, each with its line break."""
        fitted = not self._waiting
        self._waiting += lines
        try:
            self._write("".join(self._waiting))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if fitted:
                self._say(
                    f"NOT WRITTEN: {self.path}: {error.strerror}. The run goes on; lines are kept and written when "
                    "there is room"
                )
            return
        if not fitted:
            self._say(f"{self.path}: {len(self._waiting)} lines that had been kept are written")
        self._waiting.clear()

    def close(self) -> None:
        """Write what is still kept, or say what is lost."""
        if self._waiting:
            self.append([])
        if self._waiting:
            self._say(f"LOST: {len(self._waiting)} lines of {self.path}, for which there was no room")

    def _write(self, text: str) -> None:
        # Without a buffer of Python's: what it could not write would be written again on closing.
        with self.path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                data = memoryview(text.encode("utf-8"))
                while data:
                    data = data[file.write(data) :]
            except OSError:
                os.ftruncate(file.fileno(), before)
                raise
