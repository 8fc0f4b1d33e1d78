"""Writing files so that an interruption cannot corrupt them.

A complete file is published in one step; a growing file loses at most its last, incomplete line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the body that names no file, as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` to write a file to; rename it to `path` at the end.

    The rename replaces an existing file in one step. If the body raises, `path` is unchanged and the partial file is
    removed.
    """
    # In the same folder, because a rename is atomic only within a file system.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with naming(path), partial.open("rb") as file:
        # Before the rename: otherwise, after a power failure, some file systems have the new name without the content.
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all."""
    with publish(path) as partial:
        partial.write_text(text, encoding="utf-8")


def cut_torn_line(path: Path) -> None:
    """Remove a last line without a line break, left by a process that died while writing it."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file without line breaks and without an incomplete last line; empty without a file.

    Only line feeds end a line: `str.splitlines` would also split at characters that a text may contain (U+2028).
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return lines
