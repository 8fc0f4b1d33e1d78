"""A digest of the package's source, with which the processes of a run check that they run the same code."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


# Cached: files edited later are not the code that this process runs.
@cache
def code_digest() -> str:
    """Return the hex BLAKE2b-128 digest of the names and contents of the imported package's Python files."""
    root = Path(__file__).parents[1]  # the package, one level above this folder
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        # Name and length first, so that moving text from one file to another changes the digest.
        state.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        state.update(content)
    return state.hexdigest()
