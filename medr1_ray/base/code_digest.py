"""A digest of the package's own code, so that processes of one run can tell whether they run the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_digest() -> str:
    """Hex BLAKE2b-128 over the names and bytes of the Python files of the package that this process imported."""
    root = Path(__file__).parents[1]  # of the whole package, not of this room
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        state.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        state.update(content)
    return state.hexdigest()
