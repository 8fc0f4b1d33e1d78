"""The output of a process and its children, in a file of its own, and the error in it that explains a failure."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

# As Python ends a traceback: the class with its modules, and the message.
_ERROR = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception): .+)")
# What is raised because of another error: names no cause.
_CONSEQUENCES = ("Engine core initialization failed", "EngineDeadError", "See root cause above")
_READ_BYTES = 2**20


def write_output_to(path: Path, name: str) -> int:
    """Append stdout and stderr of this process and its children to a file; return the position where they begin.

    A line marks the beginning, since a resumed run writes to the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    begin = os.fstat(file).st_size
    os.write(file, f"=== {name}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    # What Python has buffered so far belongs to the old destination.
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    return begin


def last_error(path: Path, begin: int = 0) -> str | None:
    """Return the last line after `begin` that names an error, without those that follow from another; None if none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - _READ_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        found = _ERROR.search(line)
        if found and not any(consequence in line for consequence in _CONSEQUENCES):
            return found[1].strip()
    return None
